"""The feedback database: what is written is read, by many processes, and nothing half-right is accepted."""

from __future__ import annotations

import multiprocessing
import sqlite3
from datetime import UTC, datetime, timedelta

import pytest

from talaria.errors import UserError
from talaria.feedback.store import FeedbackStore

MESSAGES = [{"role": "user", "content": "你好 🙂"}]


def write_choices(path: str, annotator: str, n: int) -> None:
    store = FeedbackStore(path)
    for i in range(n):
        prompt = store.append_prompt([{"role": "user", "content": f"{annotator} {i}"}])
        first, second = (store.append_answer(prompt, text, model="m") for text in ("a", "b"))
        store.append_comparison(prompt, [[first], [second]], annotator=annotator)


def test_a_choice_comes_back_whole_after_reopening(tmp_path):
    store = FeedbackStore(tmp_path / "new" / "feedback.db")
    prompt = store.append_prompt(MESSAGES, source="test")
    a = store.append_answer(prompt, "one", model="sft", seed=2**40, sampling={"temperature": 0.7})
    b = store.append_answer(prompt, "two", model="base")
    c = store.append_answer(prompt, "three", model="base")
    store.append_comparison(prompt, [[b], [a, c]], annotator="ann", seconds=3.5, flags={"unsafe": [a]})
    store.close()
    [choice] = FeedbackStore(tmp_path / "new" / "feedback.db").read_comparisons()
    assert choice.messages == MESSAGES
    assert [[answer.text for answer in group] for group in choice.ranking] == [["two"], ["one", "three"]]
    assert (choice.ranking[1][0].seed, choice.ranking[1][0].sampling) == (2**40, {"temperature": 0.7})
    assert (choice.annotator, choice.seconds, choice.flags) == ("ann", 3.5, {"unsafe": [a]})
    assert abs(datetime.now(UTC) - choice.created_at) < timedelta(minutes=5)


def test_processes_that_open_and_write_at_once_lose_nothing(tmp_path):
    path = str(tmp_path / "feedback.db")
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_choices, args=(path, f"person{i}", 40)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    choices = FeedbackStore(path).read_comparisons()
    assert len(choices) == 120
    assert len({choice.messages[0]["content"] for choice in choices}) == 120
    for choice in choices:
        assert choice.messages[0]["content"].startswith(choice.annotator)
    assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_choices_that_make_no_sense_are_refused(tmp_path):
    store = FeedbackStore(tmp_path / "feedback.db")
    prompt, other = store.append_prompt(MESSAGES), store.append_prompt(MESSAGES)
    a, b = (store.append_answer(prompt, text, model="m") for text in "ab")
    elsewhere = store.append_answer(other, "c", model="m")
    for ranking in ([], [[a]], [[a], [a]], [[a, b], []]):
        with pytest.raises(UserError, match="two or more different answers"):
            store.append_comparison(prompt, ranking, annotator="ann")
    with pytest.raises(UserError, match=f"no answer {elsewhere} to prompt {prompt}"):
        store.append_comparison(prompt, [[a], [elsewhere]], annotator="ann")
    with pytest.raises(UserError, match="no prompt 99"):
        store.append_answer(99, "x", model="m")
    with pytest.raises(UserError, match="seconds=-1"):
        store.append_comparison(prompt, [[a], [b]], annotator="ann", seconds=-1)
    assert store.read_comparisons() == []


def test_another_schema_or_another_file_is_refused(tmp_path):
    path = tmp_path / "feedback.db"
    FeedbackStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE talaria_schema SET version = 99")
    with pytest.raises(UserError, match="schema version \\[99\\]"):
        FeedbackStore(path)
    (tmp_path / "notes.txt").write_text("not a database " * 100)
    with pytest.raises(UserError, match="cannot open the feedback database"):
        FeedbackStore(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="not a usable database location"):
        FeedbackStore("nosuchdatabase://host/name")
