"""Self-Instruct against an endpoint of the test's own: what it says, drops, keeps, and how it goes on after a kill."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from talaria.errors import UserError
from talaria.feedback.rouge import common_subsequence, rouge_l, words
from talaria.feedback.selfinstruct import Task, read_seeds, self_instruct
from talaria.feedback.settings import SelfInstructSettings
from talaria.infer.remote import RemoteEngine
from talaria.tokens.conversations import read_conversations

SEEDS = [
    Task("Name a fruit that is yellow.", [("", "A banana.")], False),
    Task("Say whether the review is good or bad.", [("I loved it", "good")], True),
    Task("Translate the sentence into French.", [("Hello", "Bonjour")], False),
]
VERBS = ["describe", "compare", "explain", "summarise", "rewrite", "outline", "criticise", "classify", "invent", "list"]


class Endpoint:
    """Answers /chat/completions as a model would, the same for the same request."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.fails_after: int | None = None
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append(body)
                if endpoint.fails_after is not None and len(endpoint.asked) > endpoint.fails_after:
                    self.send_response(400)
                    self.end_headers()
                    return
                text = endpoint.answer(body["messages"][-1]["content"], body["seed"])
                usage = {"prompt_tokens": 100, "completion_tokens": 10}
                told = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}
                sent = json.dumps(told).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, prompt: str, seed: int) -> str:
        draw = random.Random(seed)
        task = prompt.rpartition("Task: ")[2]
        if prompt.rstrip().endswith("Classification:"):
            return "Yes." if task.startswith("classify") else "No."
        if "Label: <label>" in prompt:
            return "Label: up\nInput: it rises\n\nLabel: down\nInput: it falls\n\nLabel: up\nInput: it falls"
        if "Output: <output>" in prompt:
            return (
                "Input: none\nOutput: done" if draw.random() < 0.5 else "**Input:** some text\n**Output:** other\ntext"
            )
        nouns = [f"{draw.choice('abcdefgh')}{draw.randrange(1000)}" for _ in range(12)]
        new = [f"{draw.choice(VERBS)} {' '.join(draw.sample(nouns, 5))}" for _ in range(4)]
        listed = [*new, "Name a fruit that is red.", "Draw a picture of the sea", "Too short"]
        return f" {listed[0]}\n" + "\n".join(f"{n}. {text}" for n, text in enumerate(listed[1:], start=10))

    def engine(self, cache: Path) -> RemoteEngine:
        return RemoteEngine(
            f"http://127.0.0.1:{self.server.server_address[1]}/v1", "teacher", cache=cache, max_retries=0
        )


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


def test_the_set_is_made_of_new_instructions_and_can_be_trained_on(endpoint, tmp_path):
    settings = SelfInstructSettings(instructions=20, n_parallel=4)
    report, dropped = self_instruct(SEEDS, endpoint.engine(tmp_path / "answers"), tmp_path, settings)
    assert (report.instructions, report.stopped) == (20, "enough")
    conversations = read_conversations(tmp_path / "conversations.jsonl")
    assert len(conversations) == report.instances >= 20
    rows = [json.loads(line) for line in (tmp_path / "conversations.jsonl").read_text().splitlines()]
    labelled = [row for row in rows if row["is_classification"]]
    free = [row for row in rows if not row["is_classification"]]
    assert all(row["messages"][0]["content"].startswith("classify") for row in labelled)
    assert {row["messages"][1]["content"] for row in labelled} == {"up"}, "one input with two labels is dropped"
    assert {row["messages"][1]["content"] for row in free} == {"done", "other\ntext"}
    instructions = {row["messages"][0]["content"].split("\n")[0] for row in rows}
    assert not any("\n" not in row["messages"][0]["content"] for row in labelled), "a label without its input"
    known = [task.instruction for task in SEEDS]
    for instruction in instructions:
        assert all(
            rouge_l(words(instruction), words(other)) < 0.7 for other in [*known, *(instructions - {instruction})]
        )
    assert dropped["instruction with ROUGE-L of 0.7 or more to another"] > 0
    assert dropped["instruction about what is not text"] > 0
    assert dropped["instruction shorter than 3 words or longer than 150"] > 0
    assert dropped["instances with one input and several outputs"] == report.classifications


def test_classification_is_asked_label_first_and_the_rest_input_first(endpoint, tmp_path):
    settings = SelfInstructSettings(instructions=20, n_parallel=4)
    self_instruct(SEEDS, endpoint.engine(tmp_path / "answers"), tmp_path, settings)
    prompts = [body["messages"][0]["content"] for body in endpoint.asked]
    first = [prompt for prompt in prompts if "Label: <label>" in prompt]
    other = [prompt for prompt in prompts if "Output: <output>" in prompt]
    assert first and all(prompt.rpartition("Task: ")[2].startswith("classify") for prompt in first)
    assert other and not any(prompt.rpartition("Task: ")[2].startswith("classify") for prompt in other)
    listing = [prompt for prompt in prompts if "numbered list" in prompt]
    assert len(re.findall(r"^\d+\. \w", listing[0], re.MULTILINE)) == 3, (
        "all seeds that there are, nothing of its own yet"
    )
    assert len(re.findall(r"^\d+\. \w", listing[-1], re.MULTILINE)) == 5, "two of its own beside the seeds"


def test_stopped_anywhere_it_ends_as_if_it_had_not_been(endpoint, tmp_path):
    settings = SelfInstructSettings(instructions=12, n_parallel=3)
    self_instruct(SEEDS, endpoint.engine(tmp_path / "a" / "answers"), tmp_path / "a", settings)
    n_asked = len(endpoint.asked)
    expected = (tmp_path / "a" / "conversations.jsonl").read_bytes()
    for n in range(0, n_asked, 7):
        folder = tmp_path / f"stopped {n}"
        endpoint.asked.clear()
        endpoint.fails_after = n
        with pytest.raises(UserError):
            self_instruct(SEEDS, endpoint.engine(folder / "answers"), folder, settings)
        endpoint.fails_after = None
        endpoint.asked.clear()
        engine = endpoint.engine(folder / "answers")
        self_instruct(SEEDS, engine, folder, settings)
        assert (folder / "conversations.jsonl").read_bytes() == expected
        assert len(endpoint.asked) + engine.meter.cache_hits == n_asked and engine.meter.cache_hits >= n
        assert engine.meter.prompt_tokens == 100 * len(endpoint.asked), "what was known before costs nothing"


def test_requests_are_not_more_than_allowed_and_no_progress_ends(endpoint, tmp_path):
    settings = SelfInstructSettings(instructions=1000, n_parallel=4, max_requests=30)
    report, _ = self_instruct(SEEDS, endpoint.engine(tmp_path / "answers"), tmp_path, settings)
    assert report.stopped == "all 30 requests are used up" and len(endpoint.asked) == report.requests == 30
    endpoint.answer = lambda prompt, seed: "Name a fruit that is yellow."  # type: ignore[method-assign]
    report, _ = self_instruct(SEEDS, endpoint.engine(tmp_path / "b"), tmp_path, SelfInstructSettings(n_parallel=2))
    assert report.stopped.startswith("5 rounds in a row") and report.instructions == 0


def test_rouge_l_is_that_of_the_table_of_all_prefixes():
    def by_table(a: list[str], b: list[str]) -> int:
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        return table[-1][-1]

    draw = random.Random(0)
    for _ in range(500):
        a, b = (draw.choices("abcd", k=draw.randint(0, 90)) for _ in range(2))
        assert common_subsequence(a, b) == by_table(a, b)
    assert rouge_l(words("Write a poem."), words("write a SHORT poem")) == pytest.approx(6 / 7)
    assert rouge_l(words("写一首诗"), words("写一首短诗")) == pytest.approx(8 / 9)
    assert rouge_l([], ["a"]) == 0.0


def test_seeds_that_are_none_are_told(tmp_path):
    (tmp_path / "seeds.jsonl").write_text('{"instruction": "a"}\n')
    with pytest.raises(UserError, match=r"seeds\.jsonl:1: no seed task"):
        read_seeds(tmp_path / "seeds.jsonl")


@pytest.mark.real_data
def test_the_papers_seeds_are_read_and_used(endpoint, real_data, tmp_path):
    seeds = read_seeds(real_data / "alpaca" / "seed_tasks.jsonl")
    assert len(seeds) == 175 and 10 < sum(task.is_classification for task in seeds) < 60
    settings = SelfInstructSettings(instructions=5, n_parallel=2)
    report, _ = self_instruct(seeds, endpoint.engine(tmp_path / "answers"), tmp_path, settings)
    assert report.instructions == 5
    listing = next(body for body in endpoint.asked if "numbered list" in body["messages"][0]["content"])
    assert len(re.findall(r"^\d+\. ", listing["messages"][0]["content"], re.MULTILINE)) >= 6
