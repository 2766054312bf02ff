"""The feedback database: what is written is read, by many processes, and nothing half-right is accepted."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pytest

from talaria.errors import UserError
from talaria.feedback.queue import AnnotationQueue
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


VERSION_1 = """
CREATE TABLE talaria_schema (version INTEGER NOT NULL, PRIMARY KEY (version));
CREATE TABLE prompts (id INTEGER NOT NULL, messages JSON NOT NULL, source TEXT,
  created_at DATETIME NOT NULL, PRIMARY KEY (id));
CREATE TABLE answers (id INTEGER NOT NULL, prompt_id INTEGER NOT NULL, text TEXT NOT NULL, model TEXT NOT NULL,
  seed BIGINT, sampling JSON NOT NULL, created_at DATETIME NOT NULL, PRIMARY KEY (id),
  FOREIGN KEY(prompt_id) REFERENCES prompts (id));
CREATE INDEX ix_answers_prompt_id ON answers (prompt_id);
CREATE TABLE comparisons (id INTEGER NOT NULL, prompt_id INTEGER NOT NULL, ranking JSON NOT NULL, annotator TEXT
  NOT NULL, seconds FLOAT, flags JSON NOT NULL, created_at DATETIME NOT NULL, PRIMARY KEY (id),
  FOREIGN KEY(prompt_id) REFERENCES prompts (id));
CREATE INDEX ix_comparisons_prompt_id ON comparisons (prompt_id);
INSERT INTO talaria_schema VALUES (1);
INSERT INTO prompts VALUES (1, '[{"role": "user", "content": "Hi"}]', NULL, '2026-11-01 10:00:00.000000');
INSERT INTO answers VALUES (1, 1, 'a', 'm', NULL, '{}', '2026-11-01 10:00:00.000000');
INSERT INTO answers VALUES (2, 1, 'b', 'm', NULL, '{}', '2026-11-01 10:00:00.000000');
INSERT INTO comparisons VALUES (1, 1, '[[2], [1]]', 'ann', 3.5, '{}', '2026-11-01 10:00:00.000000');
"""
RATINGS = """
CREATE TABLE ratings (id INTEGER NOT NULL, answer_id INTEGER NOT NULL, rating INTEGER NOT NULL, annotator TEXT NOT NULL,
  created_at DATETIME NOT NULL, PRIMARY KEY (id), FOREIGN KEY(answer_id) REFERENCES answers (id));
CREATE INDEX ix_ratings_answer_id ON ratings (answer_id);
INSERT INTO ratings VALUES (1, 2, 1, 'ann', '2026-11-02 10:00:00.000000');
UPDATE talaria_schema SET version = 2;
"""


@pytest.mark.parametrize("version", [1, 2])
def test_a_store_of_an_older_version_keeps_its_rows_and_takes_all_that_is_new(tmp_path, version):
    path = tmp_path / "feedback.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(VERSION_1 + (RATINGS if version == 2 else ""))
    store = FeedbackStore(path)
    [choice] = store.read_comparisons()
    assert [[answer.text for answer in group] for group in choice.ranking] == [["b"], ["a"]]
    assert (choice.seconds, choice.verdict, choice.scores, choice.replaces) == (3.5, "ranked", {}, None)
    assert len(store.read_ratings()) == version - 1
    store.append_rating(1, 1, annotator="ann")
    store.append_comparison(
        1, [[1], [2]], annotator="ann", replaces=1, scores={1: 7}, comment="better", criterion="helpful"
    )
    AnnotationQueue(store).add_item(1, [1, 2])
    store.close()
    [choice] = FeedbackStore(path).read_comparisons()
    assert (choice.scores, choice.comment, choice.criterion, choice.replaces) == ({1: 7}, "better", "helpful", 1)
    assert [rating.answer.text for rating in FeedbackStore(path).read_ratings()] == ["b", "a"][2 - version :]
    with sqlite3.connect(path) as upgraded, sqlite3.connect(tmp_path / "new.db") as new:
        FeedbackStore(tmp_path / "new.db")
        for table in ("prompts", "answers", "comparisons", "ratings", "items", "assignments"):
            assert _columns(upgraded, table) == _columns(new, table)
            assert _indexes(upgraded, table) == _indexes(new, table)


def _columns(connection: sqlite3.Connection, table: str) -> list[tuple[object, ...]]:
    return [row[1:] for row in connection.execute(f"PRAGMA table_info({table})")]


def _indexes(connection: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in connection.execute(f"PRAGMA index_list({table})")}


def test_a_correction_replaces_and_nothing_is_lost_of_what_it_replaced(tmp_path):
    store = FeedbackStore(tmp_path / "feedback.db")
    prompt = store.append_prompt(MESSAGES, asked_by="user 1", split="train")
    a, b = (store.append_answer(prompt, text, model="m") for text in "ab")
    first = store.append_comparison(prompt, [[a], [b]], annotator="ann")
    second = store.append_comparison(prompt, [[b], [a]], annotator="ann", replaces=first)
    store.append_comparison(prompt, [], annotator="bob", verdict="skipped", comment="cannot tell")
    other = store.append_comparison(prompt, [[a, b]], annotator="bob")
    assert [choice.id for choice in store.read_comparisons()] == [second, other]
    store.append_comparison(prompt, [], annotator="ann", verdict="withdrawn", replaces=second)
    assert [choice.id for choice in store.read_comparisons()] == [other]
    assert len(store.read_judgements()) == 5
    assert (store.read_comparisons()[0].asked_by, store.read_comparisons()[0].split) == ("user 1", "train")
    for replaced, name, told in (
        (first, "ann", "was replaced already"),
        (other, "ann", "one's own only"),
        (99, "ann", "no row of"),
    ):
        with pytest.raises(UserError, match=told):
            store.append_comparison(prompt, [[a], [b]], annotator=name, replaces=replaced)


@pytest.mark.parametrize("score", [0, 8, 3.5, True, "7"])
def test_scores_outside_1_to_7_are_refused(tmp_path, score):
    store = FeedbackStore(tmp_path / "feedback.db")
    prompt = store.append_prompt(MESSAGES)
    a, b = (store.append_answer(prompt, text, model="m") for text in "ab")
    with pytest.raises(UserError, match="from 1 \\(worst\\) to 7"):
        store.append_comparison(prompt, [[a], [b]], annotator="ann", scores={a: score})
    assert store.read_judgements() == []


def test_rankings_hold_two_to_nine_answers(tmp_path):
    store = FeedbackStore(tmp_path / "feedback.db")
    prompt = store.append_prompt(MESSAGES)
    ids = [store.append_answer(prompt, str(n), model="m") for n in range(10)]
    store.append_comparison(prompt, [[id] for id in ids[:9]], annotator="ann")
    with pytest.raises(UserError, match="9 at most"):
        store.append_comparison(prompt, [[id] for id in ids], annotator="ann")
    with pytest.raises(UserError, match="leave the ranking empty"):
        store.append_comparison(prompt, [[ids[0]], [ids[1]]], annotator="ann", verdict="skipped")


def test_what_is_appended_together_is_there_whole_or_not_at_all(tmp_path):
    store = FeedbackStore(tmp_path / "feedback.db")
    with pytest.raises(UserError, match="no prompt 99"), store.together():
        store.append_prompt(MESSAGES, source="half")
        store.append_answer(99, "x", model="m")
    assert not store.has_source("half")
    with store.together():
        store.append_prompt(MESSAGES, source="whole")
        assert store.has_source("whole")
    assert store.has_source("whole")


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


def test_a_time_of_another_zone_is_the_same_moment_when_it_is_read(tmp_path):
    store = FeedbackStore(tmp_path / "feedback.db")
    prompt = store.append_prompt(MESSAGES)
    ids = [[store.append_answer(prompt, text, model="m")] for text in "ab"]
    then = datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=8)))
    store.append_comparison(prompt, ids, annotator="ann", created_at=then)
    assert store.read_comparisons()[0].created_at == then


def test_nul_is_refused_where_postgresql_could_not_keep_it_and_left_out_of_answers(tmp_path):
    store = FeedbackStore(tmp_path / "feedback.db")
    prompt = store.append_prompt(MESSAGES)
    ids = [[store.append_answer(prompt, text, model="m")] for text in ("a\0b", "c")]
    with pytest.raises(UserError, match=r"comment .*NUL"):
        store.append_comparison(prompt, ids, annotator="ann", comment="x\0y")
    assert store.read_judgements() == []
    store.append_comparison(prompt, ids, annotator="ann")
    assert store.read_comparisons()[0].ranking[0][0].text == "ab"


@pytest.mark.parametrize("location", ["://x", "foo://[bad", "postgresql://u:secret@h:port/db"])
def test_a_location_that_is_no_url_is_told_without_its_password(location):
    with pytest.raises(UserError, match="not a usable database location") as told:
        FeedbackStore(location)
    assert "secret" not in str(told.value)


def test_programs_that_open_a_new_file_at_once_wait_for_each_other(tmp_path):
    """The bug: the change to a write-ahead log does not wait for the file, and one said "database is locked"."""

    def open_at_once(place):
        together.wait(10)
        store = FeedbackStore(place)
        number = store.append_prompt([{"role": "user", "content": "sea"}])
        store.close()
        return number

    together = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        for n in range(12):
            made = list(pool.map(open_at_once, [tmp_path / f"{n}.db"] * 8))
            assert sorted(made) == list(range(1, 9))
