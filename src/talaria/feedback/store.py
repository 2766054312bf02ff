"""Prompts, answers and people's choices in a database that only grows.

    store = FeedbackStore("feedback.db")                      # SQLite; or postgresql://user@host/name
    prompt = store.append_prompt([{"role": "user", "content": "Hi"}])
    a, b = (store.append_answer(prompt, text, model="sft") for text in ("Hello!", "Yo"))
    first = store.append_comparison(prompt, ranking=[[a], [b]], annotator="ann", seconds=4.2, scores={a: 6, b: 2})
    store.append_comparison(prompt, ranking=[[b], [a]], annotator="ann", replaces=first)      # on second thought
    store.append_rating(a, 1, annotator="ann")                # a thumb up

Nothing is changed or deleted: a corrected choice is one more row that names the row it replaces. Several processes may
write at once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, get_args

from talaria.errors import UserError
from talaria.feedback.schema import (
    SCHEMA_VERSION,
    Database,
    answers,
    assignments,
    comparisons,
    in_utc,
    insert,
    items,
    prompts,
    ratings,
    sa,
)

__all__ = [
    "FLAGS",
    "SCHEMA_VERSION",
    "Answer",
    "Comparison",
    "FeedbackStore",
    "Rating",
    "Verdict",
    "comparison_row",
    "standing",
]

MOST_ANSWERS = 9
FLAGS = ("unhelpful", "dishonest", "harmful")
"""What an answer may fail to be (helpful, honest, harmless: Askell et al. 2021); a flag maps to the ids of answers."""
Verdict = Literal["ranked", "skipped", "withdrawn"]


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
    """One person's choice. `ranking` lists groups of answers, best group first; answers in one group are tied.

    `verdict` "skipped" has no ranking; "withdrawn" takes the row that it replaces back and puts nothing in its place.
    `scores`: 1 (worst) to 7 by answer id. `criterion`: what was asked for (helpful, harmless); None is overall.
    """

    id: int
    prompt_id: int
    messages: list[dict[str, Any]]
    ranking: list[list[Answer]]
    annotator: str
    seconds: float | None
    flags: dict[str, Any]
    created_at: datetime
    verdict: Verdict = "ranked"
    scores: dict[int, int] = field(default_factory=dict)
    comment: str | None = None
    criterion: str | None = None
    replaces: int | None = None
    assignment_id: int | None = None
    source: str | None = None
    asked_by: str | None = None
    split: str | None = None
    is_check: bool = False
    """Of a qualification or hidden item, whose right ranking is known."""


class Details(TypedDict, total=False):
    """What may be told of a choice beside the ranking; see `Comparison`."""

    seconds: float | None
    """How long the person took."""
    flags: Mapping[str, Any] | None
    verdict: Verdict
    scores: Mapping[int, int] | None
    comment: str | None
    criterion: str | None
    created_at: datetime | None
    """Absent, now."""


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
    of an older version is brought up.

    Raises UserError where the file is no database, or was written under a schema version that is not known here.
    """

    def __init__(self, location: str | Path) -> None:
        self.database = Database(location)
        self.location = self.database.location

    def close(self) -> None:
        """Give the connections back."""
        self.database.close()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What this thread appends inside is one transaction: all of it is there afterwards, or nothing."""
        with self.database.writing():
            yield

    def append_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        source: str | None = None,
        *,
        asked_by: str | None = None,
        split: str | None = None,
    ) -> int:
        """Store a conversation that waits for an answer; returns its id. `asked_by`: the user whose prompt it is."""
        if not messages:
            raise UserError("prompt: no messages; give at least one user turn")
        values = {"source": source, "asked_by": asked_by, "split": split}
        with self.database.writing() as connection:
            return insert(connection, prompts, messages=[dict(message) for message in messages], **values)

    def append_answer(
        self,
        prompt_id: int,
        text: str,
        *,
        model: str,
        seed: int | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> int:
        """Store an answer to a prompt; returns its id. NUL, which a model may write and PostgreSQL keeps in no text, is
        left out."""
        values = {"text": text.replace("\0", ""), "model": model, "seed": seed, "sampling": dict(sampling or {})}
        with self.database.writing() as connection:
            self._require(connection, prompts, [prompt_id], "prompt")
            return insert(connection, answers, prompt_id=prompt_id, **values)

    def append_comparison(
        self,
        prompt_id: int,
        ranking: Sequence[Sequence[int]],
        *,
        annotator: str,
        replaces: int | None = None,
        assignment_id: int | None = None,
        **details: Unpack[Details],
    ) -> int:
        """Store a choice between 2 to 9 answers to one prompt; returns its id.

        `ranking`: groups of answer ids, best first; ids in one group are tied; empty unless the verdict is "ranked".
        `replaces`: the same person's earlier row, which counts no more.
        """
        values = comparison_row(ranking, annotator, **details)
        values |= {"replaces": replaces, "assignment_id": assignment_id}
        ids = [answer_id for group in ranking for answer_id in group]
        with self.database.writing() as connection:
            self._require(connection, prompts, [prompt_id], "prompt")
            self._require(connection, answers, [*ids, *(details.get("scores") or {})], "answer", prompt_id)
            if replaces is not None:
                self._require_replaceable(connection, replaces, prompt_id, annotator)
            return insert(connection, comparisons, prompt_id=prompt_id, **values)

    def append_rating(self, answer_id: int, rating: int, *, annotator: str) -> int:
        """Store a thumb on one answer, 1 up, -1 down or 0 taken back; returns its id."""
        if rating not in (-1, 0, 1):
            raise UserError(f"rating={rating}: must be 1 (up), -1 (down) or 0 (taken back)")
        with self.database.writing() as connection:
            self._require(connection, answers, [answer_id], "answer")
            return insert(connection, ratings, answer_id=answer_id, rating=rating, annotator=annotator)

    def read_ratings(self) -> list[Rating]:
        """Every thumb in the order of writing, those that a later one replaced too, with its prompt and answer."""
        rated = sa.select(ratings, answers, prompts.c.messages).join(answers, ratings.c.answer_id == answers.c.id)
        rated = rated.join(prompts, answers.c.prompt_id == prompts.c.id).order_by(ratings.c.id)
        with self.database.reading() as connection:
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
                created_at=in_utc(row.ratings_created_at),
            )
            for row in rows
        ]

    def read_comparisons(self) -> list[Comparison]:
        """The choices that stand, in the order of writing, with prompt and answers: no skips, nothing replaced, nothing
        on items that only check the annotator."""
        rows = standing(self.read_judgements())
        return [choice for choice in rows if choice.verdict == "ranked" and not choice.is_check]

    def choices_sha256(self) -> str:
        """Hex SHA-256 over the choices that stand, their prompts, answers, splits and criteria."""
        digest = hashlib.sha256()
        for choice in self.read_comparisons():
            ranked = [[answer.text for answer in group] for group in choice.ranking]
            row = [choice.messages, ranked, choice.criterion, choice.split]
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()

    def read_judgements(self) -> list[Comparison]:
        """Every row that anybody wrote, in order: skips, what was taken back and what was replaced too."""
        columns = [prompts.c[name] for name in ("messages", "source", "asked_by", "split")]
        chosen = sa.select(comparisons, *columns, items.c.kind).join(prompts, comparisons.c.prompt_id == prompts.c.id)
        chosen = chosen.outerjoin(assignments, comparisons.c.assignment_id == assignments.c.id)
        chosen = chosen.outerjoin(items, assignments.c.item_id == items.c.id).order_by(comparisons.c.id)
        compared = answers.c.prompt_id.in_(sa.select(comparisons.c.prompt_id))
        with self.database.reading() as connection:
            rows = connection.execute(chosen).all()
            known = {
                row.id: Answer(row.id, row.text, row.model, row.seed, row.sampling)
                for row in connection.execute(sa.select(answers).where(compared))
            }
        return [
            Comparison(
                id=row.id,
                prompt_id=row.prompt_id,
                messages=row.messages,
                ranking=[[known[answer_id] for answer_id in group] for group in row.ranking],
                annotator=row.annotator,
                seconds=row.seconds,
                flags=row.flags,
                created_at=in_utc(row.created_at),
                verdict=row.verdict,
                scores={int(answer_id): score for answer_id, score in row.scores.items()},
                comment=row.comment,
                criterion=row.criterion,
                replaces=row.replaces,
                assignment_id=row.assignment_id,
                source=row.source,
                asked_by=row.asked_by,
                split=row.split,
                is_check=row.kind in ("qualification", "hidden"),
            )
            for row in rows
        ]

    def has_source(self, source: str) -> bool:
        """Whether a prompt of this source is there."""
        with self.database.reading() as connection:
            return (
                connection.execute(sa.select(prompts.c.id).where(prompts.c.source == source).limit(1)).first()
                is not None
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
            raise UserError(f"{self.database.shown}: no {name} {missing[0]}{of_prompt}; append it first")

    def _require_replaceable(self, connection: sa.Connection, replaced: int, prompt_id: int, annotator: str) -> None:
        found = connection.execute(
            sa.select(comparisons.c.prompt_id, comparisons.c.annotator).where(comparisons.c.id == replaced)
        ).first()
        if found is None or tuple(found) != (prompt_id, annotator):
            raise UserError(
                f"replaces={replaced}: no row of {annotator!r} on prompt {prompt_id}; replace one's own only"
            )
        later = sa.select(comparisons.c.id).where(comparisons.c.replaces == replaced)
        if connection.execute(later).first() is not None:
            raise UserError(f"replaces={replaced}: was replaced already; replace the newest row")


def standing(judgements: Sequence[Comparison]) -> list[Comparison]:
    """Those that no later row replaces, without the rows that only take one back."""
    replaced = {judgement.replaces for judgement in judgements}
    return [row for row in judgements if row.id not in replaced and row.verdict != "withdrawn"]


def comparison_row(ranking: Sequence[Sequence[int]], annotator: str, **details: Unpack[Details]) -> dict[str, Any]:
    """A row of the comparisons' table, but for its prompt; raises UserError for what makes no sense."""
    groups = [list(group) for group in ranking]
    verdict, scores, seconds = details.get("verdict", "ranked"), details.get("scores") or {}, details.get("seconds")
    _check_ranking(groups, [answer_id for group in groups for answer_id in group], verdict)
    _check_scores(scores)
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise UserError(f"seconds={seconds}: must be 0 or more")
    return {
        "ranking": groups,
        "annotator": annotator,
        "seconds": seconds,
        "flags": dict(details.get("flags") or {}),
        "verdict": verdict,
        "scores": {str(answer_id): score for answer_id, score in scores.items()},
        "comment": details.get("comment") or None,
        "criterion": details.get("criterion"),
        "created_at": in_utc(details.get("created_at") or datetime.now(UTC)).astimezone(UTC),  # SQLite keeps no zone
    }


def _check_ranking(groups: list[list[int]], ids: list[int], verdict: Verdict) -> None:
    if verdict not in get_args(Verdict):
        raise UserError(f"verdict={verdict!r}: must be one of {', '.join(get_args(Verdict))}")
    if verdict != "ranked":
        if groups:
            raise UserError(f"verdict={verdict!r} with ranking {groups}: leave the ranking empty")
        return
    if len(ids) < 2 or len(set(ids)) < len(ids) or not all(groups):
        raise UserError(f"ranking {groups}: needs two or more different answers in groups that are not empty")
    if len(ids) > MOST_ANSWERS:
        raise UserError(f"ranking of {len(ids)} answers: {MOST_ANSWERS} at most; compare fewer at once")


def _check_scores(scores: Mapping[int, int]) -> None:
    for answer_id, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, int) or not 1 <= score <= 7:
            raise UserError(f"score {score!r} of answer {answer_id}: must be a whole number from 1 (worst) to 7 (best)")
