"""Filling the queue: answers whose seed makes them again, nothing asked twice, and what cannot be compared left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from serve.tiny_server import tiny_engine

from talaria.errors import UserError
from talaria.feedback.collect import add_known_items, answer_prompts
from talaria.feedback.prompts import Prompt
from talaria.feedback.queue import AnnotationQueue
from talaria.feedback.settings import CollectSettings
from talaria.feedback.store import FeedbackStore

SETTINGS = CollectSettings(answers=3, max_tokens=8, seed=5)


@pytest.fixture
def queue(tmp_path: Path) -> AnnotationQueue:
    return AnnotationQueue(FeedbackStore(tmp_path / "feedback.db"))


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt([{"role": "user", "content": text}], user="u", split="train") for text in texts]


def test_answers_of_all_models_are_kept_with_a_seed_that_makes_them_again(queue):
    engines = {"first": tiny_engine(0), "second": tiny_engine(1)}
    counts = answer_prompts(queue, engines, prompts("hello", "world"), "p", SETTINGS)
    assert counts["to be compared"] == 2
    given = queue.next("ann")
    queue.judge("ann", given.id, ranking=[[0], [1], [2]])
    [choice] = queue.store.read_comparisons()
    answers = [group[0] for group in choice.ranking]
    assert sorted(answer.model for answer in answers) == ["first", "first", "second"]
    assert (choice.source, choice.asked_by, choice.split) == ("p", "u", "train")
    for answer in answers:
        again = engines[answer.model].chat(choice.messages, seed=answer.seed, **answer.sampling)
        assert again.text == answer.text


def test_started_again_only_what_is_new_is_answered(queue):
    engines = {"m": tiny_engine()}
    answer_prompts(queue, engines, prompts("hello"), "p", SETTINGS)
    counts = answer_prompts(queue, engines, prompts("hello", "world"), "p", SETTINGS)
    assert (counts["answered before"], counts["to be compared"]) == (1, 1)
    assert queue.progress("ann").left == 2


def test_equal_answers_and_prompts_without_room_give_nothing_to_compare(queue):
    greedy = CollectSettings(answers=2, max_tokens=4, temperature=1e-6)
    counts = answer_prompts(queue, {"m": tiny_engine(context=64)}, prompts("hello", "x" * 500), "p", greedy)
    assert (counts["answers all equal"], counts["too long for a model's context"]) == (1, 1)
    assert queue.progress("ann").left == 0


def test_known_items_come_in_once_with_their_right_order(queue, tmp_path):
    row = {
        "messages": [{"role": "user", "content": "2 + 2?"}],
        "answers": [{"text": "5"}, {"text": "4"}],
        "ranking": [[1], [0]],
    }
    (tmp_path / "known.jsonl").write_text(json.dumps(row) + "\n")
    assert add_known_items(queue, tmp_path / "known.jsonl", "qualification") == 1
    assert add_known_items(queue, tmp_path / "known.jsonl", "qualification") == 0
    given = queue.next("ann")
    queue.judge("ann", given.id, ranking=[[given.texts.index("4")], [given.texts.index("5")]])
    assert queue.progress("ann").test == "passed"
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no ranking"):
        add_known_items(queue, tmp_path / "none.jsonl", "hidden")


def test_a_prompt_twice_in_one_file_is_asked_once(queue):
    counts = answer_prompts(queue, {"m": tiny_engine()}, prompts("hello", "world", "hello"), "p", SETTINGS)
    assert (counts["asked twice in the file"], counts["answered before"], counts["to be compared"]) == (1, 0, 2)
    assert queue.progress("ann").left == 2


def test_a_file_of_known_items_that_grows_brings_only_what_is_new(queue, tmp_path):
    rows = [
        {"messages": prompts(text)[0].messages, "answers": [{"text": "4"}, {"text": "5"}], "ranking": [[0], [1]]}
        for text in ("2 + 2?", "1 + 3?")
    ]
    path = tmp_path / "known.jsonl"
    for n, new in ((1, 1), (2, 1), (2, 0)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[:n]))
        assert add_known_items(queue, path, "qualification") == new
    assert queue.progress("ann").test_items == 2
    assert add_known_items(queue, path, "hidden") == 2, "another kind"
    path.write_text(json.dumps({**rows[0], "ranking": [[0, 1]]}) + "\n")
    with pytest.raises(UserError, match=r"known\.jsonl: '2 \+ 2\?': ties all"):
        add_known_items(queue, path, "hidden")
