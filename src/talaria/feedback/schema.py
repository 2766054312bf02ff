"""The tables of the feedback database, and one way to open it on SQLite and on PostgreSQL.

    database = Database("feedback.db")                        # or postgresql+psycopg://user@host/name
    with database.writing() as connection: ...                # one transaction; writers wait for each other
    with database.reading() as connection: ...

Rows are only added. An older schema version is brought up when it is opened, in one transaction.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from talaria.errors import UserError

__all__ = [
    "SCHEMA_VERSION",
    "Database",
    "answers",
    "assignments",
    "comparisons",
    "in_utc",
    "insert",
    "insert_all",
    "items",
    "prompts",
    "ratings",
    "sa",
]

SCHEMA_VERSION = 3
BUSY_TIMEOUT_SECONDS = 30
_ADVISORY_LOCK = 0x7A1A71A  # PostgreSQL's, of the writers of one database

metadata = sa.MetaData()


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.Integer, primary_key=True)


def _created_at() -> sa.Column[datetime]:
    return sa.Column("created_at", sa.DateTime(timezone=True), nullable=False)


schema = sa.Table("talaria_schema", metadata, sa.Column("version", sa.Integer, primary_key=True))
prompts = sa.Table(
    "prompts",
    metadata,
    _id(),
    sa.Column("messages", sa.JSON, nullable=False),
    sa.Column("source", sa.Text),
    _created_at(),
    # Since version 3. `user` is a reserved word of PostgreSQL, hence the longer name.
    sa.Column("asked_by", sa.Text),
    sa.Column("split", sa.Text),
)
answers = sa.Table(
    "answers",
    metadata,
    _id(),
    sa.Column("prompt_id", sa.ForeignKey("prompts.id"), nullable=False, index=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger),
    sa.Column("sampling", sa.JSON, nullable=False),
    _created_at(),
)
comparisons = sa.Table(
    "comparisons",
    metadata,
    _id(),
    sa.Column("prompt_id", sa.ForeignKey("prompts.id"), nullable=False, index=True),
    sa.Column("ranking", sa.JSON, nullable=False),
    sa.Column("annotator", sa.Text, nullable=False),
    sa.Column("seconds", sa.Float),
    sa.Column("flags", sa.JSON, nullable=False),
    _created_at(),
    # Since version 3.
    sa.Column("verdict", sa.Text, nullable=False, server_default="ranked"),
    sa.Column("scores", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("comment", sa.Text),
    sa.Column("criterion", sa.Text),
    sa.Column("replaces", sa.Integer),
    sa.Column("assignment_id", sa.Integer),
)
ratings = sa.Table(
    "ratings",
    metadata,
    _id(),
    sa.Column("answer_id", sa.ForeignKey("answers.id"), nullable=False, index=True),
    sa.Column("rating", sa.Integer, nullable=False),
    sa.Column("annotator", sa.Text, nullable=False),
    _created_at(),
)
items = sa.Table(
    "items",
    metadata,
    _id(),
    sa.Column("prompt_id", sa.ForeignKey("prompts.id"), nullable=False, index=True),
    sa.Column("answer_ids", sa.JSON, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("known", sa.JSON(none_as_null=True)),
    sa.Column("annotator", sa.Text),
    _created_at(),
)
assignments = sa.Table(
    "assignments",
    metadata,
    _id(),
    sa.Column("item_id", sa.ForeignKey("items.id"), nullable=False, index=True),
    sa.Column("annotator", sa.Text, nullable=False, index=True),
    sa.Column("shown", sa.JSON, nullable=False),
    _created_at(),
)
_ADDED_INDEXES = {
    3: [
        sa.Index("ix_comparisons_replaces", comparisons.c.replaces),
        sa.Index("ix_comparisons_assignment_id", comparisons.c.assignment_id),
        sa.Index("ix_prompts_source", prompts.c.source),
    ]
}
_ADDED_TABLES = {2: [ratings], 3: [items, assignments]}
_ADDED_COLUMNS: dict[int, list[sa.Column[Any]]] = {
    3: [
        *(prompts.c[name] for name in ("asked_by", "split")),
        *(comparisons.c[name] for name in ("verdict", "scores", "comment", "criterion", "replaces", "assignment_id")),
    ]
}


class Database:
    """The database at `location`: a path (SQLite) or a database URL. Made on first use, brought to SCHEMA_VERSION.

    Raises UserError where the file is no database, or was written under a schema that this program does not know.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        self._inside = threading.local()
        is_url = "://" in self.location
        if is_url:
            _require_url(self.location)
        else:
            Path(location).resolve().parent.mkdir(parents=True, exist_ok=True)
        try:
            url = sa.make_url(self.location) if is_url else sa.URL.create("sqlite", database=self.location)
            if url.drivername in ("postgres", "postgresql"):  # as libpq's own URLs are written
                url = url.set(drivername="postgresql+psycopg")
            self._engine = sa.create_engine(url)
            if self._engine.dialect.name == "sqlite":
                event.listen(self._engine, "connect", _prepare_sqlite)
                event.listen(self._engine, "begin", _begin_sqlite)
            self._writing = self._engine.execution_options(writes=True)
            self._open_schema()
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as error:
            raise UserError(f"{self.shown}: not a usable database location ({error})") from None
        except ImportError as error:
            raise UserError(
                f"{self.shown}: its driver is missing ({error}); for PostgreSQL: pip install 'psycopg[binary]'"
            ) from None
        except sa.exc.DatabaseError as error:
            raise UserError(f"{self.shown}: cannot open the feedback database ({error.orig})") from None

    @property
    def shown(self) -> str:
        """The location without a password."""
        return sa.make_url(self.location).render_as_string() if "://" in self.location else self.location

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction that may write; a second writer waits for its end. Within another, it is that one."""
        outer = getattr(self._inside, "connection", None)
        if outer is not None:
            yield outer
            return
        with self._writing.begin() as connection:
            self._take_turn(connection)
            self._inside.connection = connection
            try:
                yield connection
            finally:
                self._inside.connection = None

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One consistent view; within `writing` it sees what was written there."""
        outer = getattr(self._inside, "connection", None)
        if outer is not None:
            yield outer
            return
        with self._engine.begin() as connection:
            yield connection

    def _take_turn(self, connection: sa.Connection) -> None:
        """SQLite's BEGIN IMMEDIATE has the lock already. Without it two annotators could be given an item's last place,
        and two programs that open a new database would both make its tables."""
        if self._engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))

    def _open_schema(self) -> None:
        with self.writing() as connection:
            if not sa.inspect(connection).has_table(schema.name):
                metadata.create_all(connection)
                connection.execute(schema.insert().values(version=SCHEMA_VERSION))
            versions = list(connection.execute(sa.select(schema.c.version)).scalars())
            if len(versions) == 1 and 1 <= versions[0] < SCHEMA_VERSION:
                for version in range(versions[0] + 1, SCHEMA_VERSION + 1):
                    _upgrade(connection, version)
                connection.execute(schema.update().values(version=SCHEMA_VERSION))
                versions = [SCHEMA_VERSION]
        if versions != [SCHEMA_VERSION]:
            raise UserError(
                f"{self.shown}: feedback schema version {versions}, this program reads {SCHEMA_VERSION}; "
                "open it with the version of talaria that wrote it, or begin a new file"
            )


def _require_url(location: str) -> None:
    """Raises UserError, without the password, for what is no URL: nothing of it can be shown by its parts."""
    try:
        sa.make_url(location)
    except (sa.exc.ArgumentError, ValueError):  # ValueError: of a port that is no number
        shown = re.sub(r"//.*@", "//***@", location)
        raise UserError(f"{shown}: not a usable database location; write postgresql://USER@HOST:PORT/NAME") from None


def insert(connection: sa.Connection, table: sa.Table, **values: Any) -> int:
    """Add a row, created now unless told otherwise; returns its id."""
    return insert_all(connection, table, [values])[0]


def insert_all(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Add rows of the same columns, in a few statements however many they are; returns their ids in order."""
    if not rows:
        return []
    for name, value in ((name, value) for row in rows for name, value in row.items() if isinstance(value, str)):
        if "\0" in value:
            raise UserError(f"{table.name}.{name} {value[:60]!r}: holds the character NUL; take it out")
    made = table.insert().returning(table.c.id, sort_by_parameter_order=True)
    now = datetime.now(UTC)
    return [int(id) for id in connection.execute(made, [{"created_at": now, **row} for row in rows]).scalars()]


def in_utc(written: datetime) -> datetime:
    """SQLite forgets the zone; every row was written in UTC."""
    return written if written.tzinfo else written.replace(tzinfo=UTC)


def _upgrade(connection: sa.Connection, version: int) -> None:
    """Add what `version` brought. The columns are spelled as a new database has them, save foreign keys."""
    for table in _ADDED_TABLES[version]:
        table.create(connection)
    for column in _ADDED_COLUMNS.get(version, ()):
        spelled = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
        connection.execute(sa.text(f"ALTER TABLE {column.table.name} ADD COLUMN {spelled}"))
    for index in _ADDED_INDEXES.get(version, ()):
        index.create(connection)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Readers beside one writer at a time, and a second writer waits rather than fails."""
    connection.isolation_level = None  # the driver leaves transactions to `_begin_sqlite`
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}")
    connection.execute("PRAGMA foreign_keys = ON")
    # The change to WAL needs the file alone, and does not wait for it as a transaction does: of two programs that open
    # a new file at once, one would fail.
    give_up = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: sa.Connection) -> None:
    """A transaction that will write takes the lock at once: one that reads first could find itself outdated."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
