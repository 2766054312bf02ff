"""The feedback store on real database servers: the same calls, the same rows, on SQLite and PostgreSQL."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.postgresql import INITDB, open_postgresql
from talaria.errors import UserError
from talaria.feedback.exchange import export_choices, import_choices
from talaria.feedback.queue import AnnotationQueue
from talaria.feedback.settings import QueueSettings
from talaria.feedback.store import FeedbackStore
from talaria.feedback.summary import summarise

pytestmark = pytest.mark.services
needs_server = pytest.mark.skipif(INITDB is None, reason="no PostgreSQL; on Debian: apt-get install postgresql")
MESSAGES = [{"role": "user", "content": "你好 🙂"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with open_postgresql(tmp_path_factory.mktemp("server") / "postgresql") as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_server)])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "feedback.db")
    url: str = request.getfixturevalue("server")
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    return url


def annotate(location: str, name: str) -> None:
    """Open, also where the tables are being made, and work until nothing is left."""
    queue = AnnotationQueue(FeedbackStore(location), QueueSettings(annotators_per_item=2, hidden_share=0.2))
    done = 0
    while done < 60 and (given := queue.next(name)) is not None:
        best = given.texts.index("better")
        queue.judge(name, given.id, ranking=[[best], [1 - best]], scores={best: 7}, seconds=1.5)
        done += 1
        if done % 10 == 0:
            queue.undo(name)


def fill(location: str) -> None:
    queue = AnnotationQueue(FeedbackStore(location))
    for n in range(40):
        prompt = queue.store.append_prompt([{"role": "user", "content": f"问 {n}"}], source="test", split="train")
        ids = [queue.store.append_answer(prompt, text, model="m", seed=2**40) for text in ("better", "worse")]
        queue.add_item(
            prompt, ids, "hidden" if n % 8 == 0 else "ordinary", known=[[i] for i in ids] if n % 8 == 0 else None
        )


def test_processes_that_open_and_annotate_at_once_lose_nothing_and_repeat_nothing(location: str) -> None:
    context = multiprocessing.get_context("spawn")
    opening = [context.Process(target=annotate, args=(location, f"nobody {n}")) for n in range(3)]
    for process in opening:  # all make the tables
        process.start()
    for process in opening:
        process.join(60)
    assert [process.exitcode for process in opening] == [0, 0, 0]
    fill(location)
    people = [context.Process(target=annotate, args=(location, name)) for name in ("ann", "bob", "eve")]
    for process in people:
        process.start()
    for process in people:
        process.join(60)
    assert [process.exitcode for process in people] == [0, 0, 0]
    store = FeedbackStore(location)
    choices = store.read_comparisons()
    assert any(row.is_check for row in store.read_judgements())
    assert Counter(Counter(choice.prompt_id for choice in choices).values()) == {2: 35}
    assert max(Counter((choice.prompt_id, choice.annotator) for choice in choices).values()) == 1
    assert all(choice.ranking[0][0].text == "better" and list(choice.scores.values()) == [7] for choice in choices)
    summary = summarise(store, resamples=50)
    assert (summary.choices, summary.agreement.among.n, summary.agreement.among.share) == (70, 35, 1.0)
    assert all(person.known_right == person.known for person in summary.annotators)
    store.close()


def test_rows_come_back_the_same(location: str, tmp_path: Path) -> None:
    store = FeedbackStore(location)
    prompt = store.append_prompt(MESSAGES, source="s", asked_by="u", split="test")
    a, b = (store.append_answer(prompt, t, model="m", seed=2**62, sampling={"top_p": 0.5}) for t in ("one", "二"))
    first = store.append_comparison(prompt, [[a], [b]], annotator="ann", seconds=0.5, flags={"harmful": [b]})
    store.append_comparison(
        prompt, [[b], [a]], annotator="ann", replaces=first, scores={a: 1, b: 7}, comment="因为", criterion="helpful"
    )
    store.append_rating(a, -1, annotator="ann")
    [choice] = store.read_comparisons()
    assert (choice.messages, choice.source, choice.asked_by, choice.split) == (MESSAGES, "s", "u", "test")
    assert (choice.scores, choice.comment, choice.criterion, choice.replaces) == (
        {a: 1, b: 7},
        "因为",
        "helpful",
        first,
    )
    assert choice.ranking[0][0].seed == 2**62 and choice.created_at.utcoffset() is not None
    assert [rating.rating for rating in store.read_ratings()] == [-1]
    with pytest.raises(UserError, match="no answer 99"):
        store.append_comparison(prompt, [[a], [99]], annotator="ann")
    export_choices(store.read_comparisons(), tmp_path / "out.jsonl", "jsonl")
    import_choices(store, tmp_path / "out.jsonl", "jsonl")
    assert len(store.read_comparisons()) == 2
    store.close()


@needs_server
def test_a_store_of_version_2_is_brought_up_on_postgresql(server: str) -> None:
    engine = sa.create_engine(server.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
        for statement in VERSION_2.split(";"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    engine.dispose()
    store = FeedbackStore(server)
    [choice] = store.read_comparisons()
    assert (choice.ranking[0][0].text, choice.verdict, choice.scores) == ("b", "ranked", {})
    store.append_comparison(1, [[1], [2]], annotator="ann", replaces=1, scores={1: 5})
    assert store.read_comparisons()[0].ranking[0][0].text == "a"
    store.close()


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot open the feedback database") as told:
        FeedbackStore(f"postgresql://talaria:secret@/postgres?host={tmp_path}")
    assert "secret" not in str(told.value)


VERSION_2 = """
CREATE TABLE talaria_schema (version SERIAL NOT NULL, PRIMARY KEY (version));
CREATE TABLE prompts (id SERIAL NOT NULL, messages JSON NOT NULL, source TEXT,
  created_at TIMESTAMP WITH TIME ZONE NOT NULL, PRIMARY KEY (id));
CREATE TABLE answers (id SERIAL NOT NULL, prompt_id INTEGER NOT NULL REFERENCES prompts (id), text TEXT NOT NULL,
  model TEXT NOT NULL, seed BIGINT, sampling JSON NOT NULL, created_at TIMESTAMP WITH TIME ZONE NOT NULL,
  PRIMARY KEY (id));
CREATE TABLE comparisons (id SERIAL NOT NULL, prompt_id INTEGER NOT NULL REFERENCES prompts (id), ranking JSON NOT NULL,
  annotator TEXT NOT NULL, seconds FLOAT, flags JSON NOT NULL, created_at TIMESTAMP WITH TIME ZONE NOT NULL,
  PRIMARY KEY (id));
CREATE TABLE ratings (id SERIAL NOT NULL, answer_id INTEGER NOT NULL REFERENCES answers (id), rating INTEGER NOT NULL,
  annotator TEXT NOT NULL, created_at TIMESTAMP WITH TIME ZONE NOT NULL, PRIMARY KEY (id));
INSERT INTO talaria_schema VALUES (2);
INSERT INTO prompts (messages, created_at) VALUES ('[{"role": "user", "content": "Hi"}]', now());
INSERT INTO answers (prompt_id, text, model, sampling, created_at) VALUES (1, 'a', 'm', '{}', now());
INSERT INTO answers (prompt_id, text, model, sampling, created_at) VALUES (1, 'b', 'm', '{}', now());
INSERT INTO comparisons (prompt_id, ranking, annotator, flags, created_at) VALUES (1, '[[2], [1]]', 'ann', '{}', now())
"""
