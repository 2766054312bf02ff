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


def test_thumbs_come_back_in_order_with_their_answer(tmp_path):
    store = FeedbackStore(tmp_path / "feedback.db")
    other, prompt = store.append_prompt([{"role": "user", "content": "other"}]), store.append_prompt(MESSAGES)
    store.append_answer(other, "not rated", model="m")
    answer = store.append_answer(prompt, "one", model="sft", seed=2**40, sampling={"top_p": 0.5})
    for rating in (1, -1, 0):
        store.append_rating(answer, rating, annotator="ann")
    store.close()
    ratings = FeedbackStore(tmp_path / "feedback.db").read_ratings()
    assert [rating.rating for rating in ratings] == [1, -1, 0]
    assert {rating.answer.text for rating in ratings} == {"one"}
    last = ratings[-1]
    assert (last.messages, last.annotator, last.answer.model) == (MESSAGES, "ann", "sft")
    assert (last.answer.seed, last.answer.sampling) == (2**40, {"top_p": 0.5})
    assert abs(datetime.now(UTC) - last.created_at) < timedelta(minutes=5)
    with pytest.raises(UserError, match="no answer 99"):
        store.append_rating(99, 1, annotator="ann")
    with pytest.raises(UserError, match="rating=2"):
        store.append_rating(answer, 2, annotator="ann")


def test_a_store_of_version_1_keeps_its_rows_and_takes_thumbs(tmp_path):
    path = tmp_path / "feedback.db"
    write_choices(str(path), "ann", 2)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE ratings")
        connection.execute("UPDATE talaria_schema SET version = 1")
    store = FeedbackStore(path)
    choice = store.read_comparisons()[1]
    store.append_rating(choice.ranking[0][0].id, 1, annotator="ann")
    assert len(FeedbackStore(path).read_comparisons()) == 2
    assert [rating.answer.text for rating in FeedbackStore(path).read_ratings()] == ["a"]


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
