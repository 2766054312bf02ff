"""Prompts, answers and people's choices in a database that only grows.

    store = FeedbackStore("feedback.db")                      # SQLite; or postgresql://user@host/name
    prompt = store.append_prompt([{"role": "user", "content": "Hi"}])
    a, b = (store.append_answer(prompt, text, model="sft") for text in ("Hello!", "Yo"))
    store.append_comparison(prompt, ranking=[[a], [b]], annotator="ann", seconds=4.2)
    store.append_rating(a, 1, annotator="ann")                # a thumb up

Nothing is changed or deleted: a corrected choice is one more row. Several processes may write at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from talaria.errors import UserError

try:
    import sqlalchemy as sa
    from sqlalchemy import event
except ImportError:
    raise UserError("feedback needs SQLAlchemy; install it with: pip install 'talaria-lm[serve]'") from None

SCHEMA_VERSION = 2
BUSY_TIMEOUT_SECONDS = 30

_metadata = sa.MetaData()
_schema = sa.Table("talaria_schema", _metadata, sa.Column("version", sa.Integer, primary_key=True))
_prompts = sa.Table(
    "prompts",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("messages", sa.JSON, nullable=False),
    sa.Column("source", sa.Text),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)
_answers = sa.Table(
    "answers",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("prompt_id", sa.ForeignKey("prompts.id"), nullable=False, index=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger),
    sa.Column("sampling", sa.JSON, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)
_comparisons = sa.Table(
    "comparisons",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("prompt_id", sa.ForeignKey("prompts.id"), nullable=False, index=True),
    sa.Column("ranking", sa.JSON, nullable=False),
    sa.Column("annotator", sa.Text, nullable=False),
    sa.Column("seconds", sa.Float),
    sa.Column("flags", sa.JSON, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)
_ratings = sa.Table(
    "ratings",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("answer_id", sa.ForeignKey("answers.id"), nullable=False, index=True),
    sa.Column("rating", sa.Integer, nullable=False),
    sa.Column("annotator", sa.Text, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)


@dataclass(frozen=True)
class Answer:
    """One answer: its text, the model and settings that gave it."""

    id: int
    text: str
    model: str
    seed: int | None
    sampling: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One person's choice. `ranking` lists groups of answers, best group first; answers in one group are tied."""

    id: int
    prompt_id: int
    messages: list[dict[str, Any]]
    ranking: list[list[Answer]]
    annotator: str
    seconds: float | None
    flags: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True)
class Rating:
    """One person's thumb on one answer: 1 up, -1 down, 0 taken back. A person's later row on an answer replaces the
    earlier one."""

    id: int
    messages: list[dict[str, Any]]
    answer: Answer
    rating: int
    annotator: str
    created_at: datetime


class FeedbackStore:
    """The database at `location`: a path (SQLite) or a database URL. Made on first use; its schema is checked, and one
    of version 1 gets the table that version 2 added.

    Raises UserError where the file is no database, or was written under another schema version.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        is_url = "://" in self.location
        if not is_url:
            Path(location).resolve().parent.mkdir(parents=True, exist_ok=True)
        try:
            self._engine = sa.create_engine(
                self.location if is_url else sa.URL.create("sqlite", database=self.location)
            )
            if self._engine.dialect.name == "sqlite":
                event.listen(self._engine, "connect", _prepare_sqlite)
                event.listen(self._engine, "begin", _begin_sqlite)
            self._writing = self._engine.execution_options(writes=True)
            self._open_schema()
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError) as error:
            raise UserError(f"{self._shown}: not a usable database location ({error})") from None
        except sa.exc.DatabaseError as error:
            raise UserError(f"{self._shown}: cannot open the feedback database ({error.orig})") from None

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def append_prompt(self, messages: Sequence[Mapping[str, Any]], source: str | None = None) -> int:
        """Store a conversation that waits for an answer; returns its id."""
        if not messages:
            raise UserError("prompt: no messages; give at least one user turn")
        with self._writing.begin() as connection:
            return _insert(connection, _prompts, messages=[dict(message) for message in messages], source=source)

    def append_answer(
        self,
        prompt_id: int,
        text: str,
        *,
        model: str,
        seed: int | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> int:
        """Store an answer to a prompt; returns its id."""
        values = {"text": text, "model": model, "seed": seed, "sampling": dict(sampling or {})}
        with self._writing.begin() as connection:
            self._require(connection, _prompts, [prompt_id], "prompt")
            return _insert(connection, _answers, prompt_id=prompt_id, **values)

    def append_comparison(
        self,
        prompt_id: int,
        ranking: Sequence[Sequence[int]],
        *,
        annotator: str,
        seconds: float | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> int:
        """Store a choice between two or more answers to one prompt; returns its id.

        `ranking`: groups of answer ids, best first; ids in one group are tied. `seconds`: how long the person took.
        """
        groups = [list(group) for group in ranking]
        ids = [answer_id for group in groups for answer_id in group]
        if len(ids) < 2 or len(set(ids)) < len(ids) or not all(groups):
            raise UserError(f"ranking {groups}: needs two or more different answers in groups that are not empty")
        if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
            raise UserError(f"seconds={seconds}: must be 0 or more")
        values = {"ranking": groups, "annotator": annotator, "seconds": seconds, "flags": dict(flags or {})}
        with self._writing.begin() as connection:
            self._require(connection, _prompts, [prompt_id], "prompt")
            self._require(connection, _answers, ids, "answer", prompt_id)
            return _insert(connection, _comparisons, prompt_id=prompt_id, **values)

    def append_rating(self, answer_id: int, rating: int, *, annotator: str) -> int:
        """Store a thumb on one answer, 1 up, -1 down or 0 taken back; returns its id."""
        if rating not in (-1, 0, 1):
            raise UserError(f"rating={rating}: must be 1 (up), -1 (down) or 0 (taken back)")
        with self._writing.begin() as connection:
            self._require(connection, _answers, [answer_id], "answer")
            return _insert(connection, _ratings, answer_id=answer_id, rating=rating, annotator=annotator)

    def read_ratings(self) -> list[Rating]:
        """Every thumb in the order of writing, those that a later one replaced too, with its prompt and answer."""
        rated = sa.select(_ratings, _answers, _prompts.c.messages).join(_answers, _ratings.c.answer_id == _answers.c.id)
        rated = rated.join(_prompts, _answers.c.prompt_id == _prompts.c.id).order_by(_ratings.c.id)
        with self._engine.begin() as connection:
            rows = connection.execute(rated.set_label_style(sa.LABEL_STYLE_TABLENAME_PLUS_COL)).all()
        return [
            Rating(
                id=row.ratings_id,
                messages=row.prompts_messages,
                answer=Answer(
                    row.answers_id, row.answers_text, row.answers_model, row.answers_seed, row.answers_sampling
                ),
                rating=row.ratings_rating,
                annotator=row.ratings_annotator,
                created_at=_in_utc(row.ratings_created_at),
            )
            for row in rows
        ]

    def read_comparisons(self) -> list[Comparison]:
        """Every choice in the order of writing, with its prompt and answers."""
        chosen = sa.select(_comparisons, _prompts.c.messages).join(_prompts).order_by(_comparisons.c.id)
        compared = _answers.c.prompt_id.in_(sa.select(_comparisons.c.prompt_id))
        with self._engine.begin() as connection:
            rows = connection.execute(chosen).all()
            answers = {
                row.id: Answer(row.id, row.text, row.model, row.seed, row.sampling)
                for row in connection.execute(sa.select(_answers).where(compared))
            }
        return [
            Comparison(
                id=row.id,
                prompt_id=row.prompt_id,
                messages=row.messages,
                ranking=[[answers[answer_id] for answer_id in group] for group in row.ranking],
                annotator=row.annotator,
                seconds=row.seconds,
                flags=row.flags,
                created_at=_in_utc(row.created_at),
            )
            for row in rows
        ]

    @property
    def _shown(self) -> str:
        """The location without a password."""
        return sa.make_url(self.location).render_as_string() if "://" in self.location else self.location

    def _open_schema(self) -> None:
        with self._writing.begin() as connection:
            if not sa.inspect(connection).has_table(_schema.name):
                _metadata.create_all(connection)
                connection.execute(_schema.insert().values(version=SCHEMA_VERSION))
            versions = list(connection.execute(sa.select(_schema.c.version)).scalars())
            if versions == [1]:
                _ratings.create(connection)
                connection.execute(_schema.update().values(version=SCHEMA_VERSION))
                versions = [SCHEMA_VERSION]
        if versions != [SCHEMA_VERSION]:
            raise UserError(
                f"{self._shown}: feedback schema version {versions}, this program reads {SCHEMA_VERSION}; "
                "open it with the version of talaria that wrote it, or begin a new file"
            )

    def _require(
        self, connection: sa.Connection, table: sa.Table, ids: list[int], name: str, prompt_id: int | None = None
    ) -> None:
        query = sa.select(table.c.id).where(table.c.id.in_(ids))
        if prompt_id is not None:
            query = query.where(table.c.prompt_id == prompt_id)
        missing = sorted(set(ids) - set(connection.execute(query).scalars()))
        if missing:
            of_prompt = "" if prompt_id is None else f" to prompt {prompt_id}"
            raise UserError(f"{self._shown}: no {name} {missing[0]}{of_prompt}; append it first")


def _insert(connection: sa.Connection, table: sa.Table, **values: Any) -> int:
    result = connection.execute(table.insert().values(created_at=datetime.now(UTC), **values))
    assert result.inserted_primary_key is not None
    return int(result.inserted_primary_key[0])


def _in_utc(written: datetime) -> datetime:
    """SQLite forgets the zone; every row was written in UTC."""
    return written if written.tzinfo else written.replace(tzinfo=UTC)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Readers beside one writer at a time, and a second writer waits rather than fails."""
    connection.isolation_level = None  # the driver leaves transactions to `_begin_sqlite`
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}")
    connection.execute("PRAGMA foreign_keys = ON")
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        connection.execute("PRAGMA journal_mode = WAL")


def _begin_sqlite(connection: sa.Connection) -> None:
    """A transaction that will write takes the lock at once: one that reads first could find itself outdated."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
