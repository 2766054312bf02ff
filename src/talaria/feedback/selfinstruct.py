"""An SFT set from seed tasks and a model behind a URL: Self-Instruct (Wang et al. 2023).

    report = self_instruct(read_seeds(Path("seed_tasks.jsonl")), engine, Path("made"), SelfInstructSettings())

A round shows the model tasks and asks for new ones; drops those like what is there (ROUGE-L); asks of each new one
whether it is a classification; and asks for instances, label first for classification (else the model gives inputs of
one label only), input first for the rest. `made/conversations.jsonl` holds the result after each round. The engine must
keep its answers (`RemoteEngine(cache=...)`): the same call made again replays them and goes on from there.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from talaria.corpus.document import decode_line
from talaria.corpus.files import read_lines
from talaria.errors import UserError
from talaria.feedback.rouge import rouge_l, words
from talaria.feedback.settings import SelfInstructSettings
from talaria.files import atomic_write, to_json
from talaria.infer.contract import Completion, row_seed

CONVERSATIONS = "conversations.jsonl"
_FRUITLESS_ROUNDS = 5
# What a model of text cannot do or show (Wang et al. 2023, section 2.2).
_NOT_TEXT = frozenset(
    [
        "image",
        "images",
        "picture",
        "pictures",
        "photo",
        "photos",
        "graph",
        "graphs",
        "map",
        "maps",
        "video",
        "videos",
        "music",
        "audio",
        "file",
        "files",
        "draw",
        "plot",
    ]
)


class Chat(Protocol):
    """What is asked: an engine, local or remote."""

    def chat(self, messages: Sequence[dict[str, str]], **sampling: Any) -> Completion: ...


@dataclass(frozen=True)
class Task:
    """An instruction with its instances: pairs of input ("" where none is needed) and output."""

    instruction: str
    instances: list[tuple[str, str]]
    is_classification: bool


@dataclass
class Report:
    """What came of it. `dropped` by reason; `requests` includes those that an earlier call made."""

    instructions: int = 0
    classifications: int = 0
    instances: int = 0
    requests: int = 0
    rounds: int = 0
    stopped: str = ""


def read_seeds(path: Path) -> list[Task]:
    """Rows with instruction, instances [{"input", "output"}] and is_classification, or Alpaca's flat rows."""
    tasks = []
    for number, offset, line in read_lines(path):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(decode_line(path, line, offset))
            found = row.get("instances", [row])
            instances = [(str(one.get("input") or ""), str(one["output"])) for one in found]
            tasks.append(Task(str(row["instruction"]).strip(), instances, bool(row.get("is_classification", False))))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise UserError(
                f"{place}: no seed task ({type(error).__name__}: {error}); write instruction, instances and "
                "is_classification"
            ) from None
    if len(tasks) < 2:
        raise UserError(f"{path}: holds {len(tasks)} seed tasks; give at least two")
    return tasks


def self_instruct(
    seeds: Sequence[Task],
    engine: Chat,
    folder: Path,
    settings: SelfInstructSettings,
    told: Callable[[Report], None] = lambda report: None,
) -> tuple[Report, dict[str, int]]:
    """Make tasks until there are enough, the requests are used up or five rounds brought nothing new.

    Returns the report and what was dropped, by reason. `told` hears of each round.
    """
    maker = _Maker(seeds, engine, settings)
    fruitless = 0
    while not maker.report.stopped:
        before = len(maker.tasks)
        maker.round()
        fruitless = 0 if len(maker.tasks) > before else fruitless + 1
        if len(maker.tasks) >= settings.instructions:
            maker.report.stopped = "enough"
        elif fruitless == _FRUITLESS_ROUNDS:
            maker.report.stopped = f"{_FRUITLESS_ROUNDS} rounds in a row brought no new instruction"
        rows = [row for task in maker.tasks for row in _conversations(task)]
        atomic_write(folder / CONVERSATIONS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        report = {**asdict(maker.report), "dropped": dict(maker.dropped), "settings": settings.model_dump()}
        atomic_write(folder / "report.json", to_json(report))
        told(maker.report)
    return maker.report, dict(maker.dropped)


class _Maker:
    """What grows over the rounds. Every draw depends on the settings' seed and the request's number alone."""

    def __init__(self, seeds: Sequence[Task], engine: Chat, settings: SelfInstructSettings) -> None:
        self.seeds, self.engine, self.settings = list(seeds), engine, settings
        self.tasks: list[Task] = []
        self.dropped: Counter[str] = Counter()
        self.report = Report()
        self._known = [words(task.instruction) for task in seeds]

    def round(self) -> None:
        """One request for instructions from each of n_parallel draws, then two for each instruction that is new."""
        prompts = []
        for n in range(self.settings.n_parallel):
            draw = random.Random(f"{self.settings.seed}:{self.report.rounds}:{n}")
            own = draw.sample(self.tasks, min(self.settings.own_examples, len(self.tasks)))
            shown = draw.sample(self.seeds, min(self.settings.seed_examples, len(self.seeds))) + own
            draw.shuffle(shown)
            prompts.append(_ask_for_instructions(shown))
        self.report.rounds += 1
        drawn = {"temperature": self.settings.temperature, "top_p": self.settings.top_p}
        new = []
        for answer in self._ask(prompts, **drawn):
            for instruction in _listed(answer):
                if self._is_new(instruction):
                    new.append(instruction)
        new = new[: self.settings.instructions - len(self.tasks)]
        kinds = self._ask([self._ask_for_kind(instruction) for instruction in new])
        are_labels = [bool(re.match(r"\W*yes\b", kind, re.IGNORECASE)) for kind in kinds]
        new = new[: len(are_labels)]
        asked = [_ask_for_instances(*one) for one in zip(new, are_labels, strict=True)]
        for instruction, is_label, answer in zip(new, are_labels, self._ask(asked), strict=False):
            instances = self._instances(answer, is_label)
            if instances:
                self.tasks.append(Task(instruction, instances, is_label))
                self.report.instances += len(instances)
                self.report.classifications += is_label
            else:
                self.dropped["instruction without a usable instance"] += 1
        self.report.instructions = len(self.tasks)

    def _ask(self, prompts: list[str], temperature: float = 0.0, top_p: float = 1.0) -> list[str]:
        """Answers in order. Where the requests are used up the later prompts are not asked."""
        limit = self.settings.max_requests
        if limit is not None and self.report.requests + len(prompts) > limit:
            self.report.stopped = f"all {limit} requests are used up"
            prompts = prompts[: limit - self.report.requests]
        begin = self.report.requests
        self.report.requests += len(prompts)

        def one(numbered: tuple[int, str]) -> str:
            number, prompt = numbered
            messages = [{"role": "user", "content": prompt}]
            options = {"temperature": temperature, "top_p": top_p, "max_tokens": self.settings.max_tokens}
            return self.engine.chat(messages, seed=row_seed(self.settings.seed, number), **options).text

        with ThreadPoolExecutor(self.settings.n_parallel) as pool:
            return list(pool.map(one, enumerate(prompts, start=begin)))

    def _is_new(self, instruction: str) -> bool:
        """Keep count of why not; what is new is known from now on."""
        found = words(instruction)
        if not 3 <= len(found) <= 150:
            self.dropped["instruction shorter than 3 words or longer than 150"] += 1
        elif _NOT_TEXT & set(found):
            self.dropped["instruction about what is not text"] += 1
        elif any(_is_like(found, known, self.settings.rouge) for known in self._known):
            self.dropped[f"instruction with ROUGE-L of {self.settings.rouge:g} or more to another"] += 1
        else:
            self._known.append(found)
            return True
        return False

    def _ask_for_kind(self, instruction: str) -> str:
        draw = random.Random(f"{self.settings.seed}:{instruction}")
        labels = [task for task in self.seeds if task.is_classification]
        others = [task for task in self.seeds if not task.is_classification]
        shown = draw.sample(labels, min(6, len(labels))) + draw.sample(others, min(8, len(others)))
        draw.shuffle(shown)
        examples = "\n\n".join(
            f"Task: {task.instruction}\nClassification: {'Yes' if task.is_classification else 'No'}" for task in shown
        )
        return _KIND.format(examples=examples, instruction=instruction)

    def _instances(self, answer: str, is_label: bool) -> list[tuple[str, str]]:
        found: dict[str, str] = {}
        conflicts = set()
        for given, output in _parsed_instances(answer, is_label):
            if not output or output == given:
                self.dropped["instance with an empty output, or one that repeats the input"] += 1
            elif given in found and found[given] != output:
                conflicts.add(given)  # the same input with two outputs: neither can be trusted
            else:
                found[given] = output
        self.dropped["instances with one input and several outputs"] += len(conflicts)
        return [(given, output) for given, output in found.items() if given not in conflicts]


def _is_like(first: Sequence[str], second: Sequence[str], rouge: float) -> bool:
    """ROUGE-L of `rouge` or more. Two texts of very different lengths cannot reach it, which is quick to see."""
    reachable = 2 * min(len(first), len(second)) >= rouge * (len(first) + len(second))
    return reachable and rouge_l(first, second) >= rouge


_INSTRUCTIONS = """\
Below is a numbered list of tasks for an assistant that reads and writes text. Go on with the list: write eight more
tasks, each on one line with its number. Make them differ from these and from each other in topic, verb and form; some
ask for a choice from a few labels, others for free text. Write the tasks only, not their solutions.

{listed}
{next}."""
_KIND = """\
A classification task has a small, fixed set of possible outputs (labels). Say for the last task whether it is one.
Answer with Yes or No alone.

{examples}

Task: {instruction}
Classification:"""
_LABEL_FIRST = """\
For the classification task below write an example of each possible label. For each, first the label, then an input
that has it, in exactly this form, with a blank line between examples:

Label: <label>
Input: <input>

Task: {instruction}"""
_INPUT_FIRST = """\
Write one to three worked examples of the task below. For each, first the input, then the output that solves it, in
exactly this form, with a blank line between examples. Where the task needs no input, write Input: none, once.

Input: <input>
Output: <output>

Task: {instruction}"""


def _ask_for_instructions(shown: Sequence[Task]) -> str:
    listed = "\n".join(f"{n}. {_one_line(task.instruction)}" for n, task in enumerate(shown, start=1))
    return _INSTRUCTIONS.format(listed=listed, next=len(shown) + 1)


def _ask_for_instances(instruction: str, is_label: bool) -> str:
    return (_LABEL_FIRST if is_label else _INPUT_FIRST).format(instruction=instruction)


def _listed(answer: str) -> list[str]:
    """The instructions of a numbered list; the first may come without its number, which the prompt ended with."""
    parts = re.split(r"(?:^|\n)\s*\d{1,3}[.):]\s+", f"\n{answer.strip()}")
    found = [_one_line(part) for part in parts if part.strip()]
    if not re.match(r"\s*\d{1,3}[.):]", answer) and len(found) > 1 and answer.lstrip()[:40].endswith(":"):
        found = found[1:]  # "Here are eight more tasks:"
    return found


def _parsed_instances(answer: str, is_label: bool) -> list[tuple[str, str]]:
    """(input, output) pairs of an answer in the form that was asked for; anything before the first mark is left out."""
    first, second = ("Label", "Input") if is_label else ("Input", "Output")
    found = []
    for part in re.split(rf"(?:^|\n)[*\s]*{first}[*\s]*:[*]*", f"\n{answer}")[1:]:
        pieces = re.split(rf"(?:^|\n)[*\s]*{second}[*\s]*:[*]*", f"\n{part}", maxsplit=1)
        begin, end = pieces[0].strip(), pieces[1].strip() if len(pieces) > 1 else ""
        given, output = (end, begin) if is_label else (begin, end)
        found.append(("" if given.strip(" .<>").lower() in ("none", "noinput", "无") else given, output))
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _conversations(task: Task) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": "\n\n".join(part for part in (task.instruction, given) if part)},
                {"role": "assistant", "content": output},
            ],
            "kind": "self-instruct",
            "is_classification": task.is_classification,
        }
        for given, output in task.instances
    ]
