"""Who compares what next: items of the feedback store in, assignments to annotators out.

    queue = AnnotationQueue(store, QueueSettings(annotators_per_item=2))
    queue.add_item(prompt_id, [a, b])                         # known=[[a], [b]] and kind="hidden" for a check
    given = queue.next("ann")                                 # the same one again until it is judged
    queue.judge("ann", given.id, ranking=[[0], [1]])          # places in the order in which the answers were shown
    queue.undo("ann")                                         # a row that takes the last one back

Nobody gets a prompt twice. An item is given to `annotators_per_item` people; one whose time has run out counts no more,
so that somebody who leaves holds nothing up. All state is rows of the store: a server that dies forgets nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from talaria.errors import UserError
from talaria.feedback.agreement import follows
from talaria.feedback.schema import answers as answer_rows
from talaria.feedback.schema import assignments, comparisons, in_utc, insert, items, prompts, sa
from talaria.feedback.settings import QueueSettings
from talaria.feedback.store import FLAGS, MOST_ANSWERS, Details, FeedbackStore, Verdict, comparison_row

Kind = Literal["ordinary", "qualification", "hidden", "talk"]
Test = Literal["none", "open", "passed", "failed"]

_draw = random.SystemRandom()
_later = comparisons.alias("later")
_stands = sa.and_(
    comparisons.c.verdict != "withdrawn",
    ~sa.exists(sa.select(_later.c.id).where(_later.c.replaces == comparisons.c.id)),
)


@dataclass(frozen=True)
class Assignment:
    """What one annotator sees: the conversation, and the answers in an order drawn for this annotator alone."""

    id: int
    item_id: int
    prompt_id: int
    kind: Kind
    messages: list[dict[str, Any]]
    answer_ids: list[int]
    texts: list[str]
    created_at: datetime


@dataclass(frozen=True)
class Progress:
    """Of one annotator: judgements that stand, items still to be had, the qualification test, and the number of the
    judgement that `undo` takes back, if there is one."""

    done: int
    left: int
    test: Test
    test_done: int
    test_items: int
    last: int | None = None


class AnnotationQueue:
    """The queue in `store`. Several servers may run on one store."""

    def __init__(self, store: FeedbackStore, settings: QueueSettings | None = None) -> None:
        self.store = store
        self.settings = settings or QueueSettings()
        self._database = store.database

    def add_item(
        self,
        prompt_id: int,
        answer_ids: Sequence[int],
        kind: Kind = "ordinary",
        *,
        known: Sequence[Sequence[int]] | None = None,
        annotator: str | None = None,
    ) -> int:
        """Put 2 to 9 answers to one prompt up for comparison; returns the item's id.

        `known`: the right ranking of ids, which "qualification" and "hidden" items need. `annotator`: for nobody else.
        """
        if kind not in get_args(Kind):
            raise UserError(f"kind={kind!r}: must be one of {', '.join(get_args(Kind))}")
        if not 2 <= len(answer_ids) <= MOST_ANSWERS or len(set(answer_ids)) < len(answer_ids):
            raise UserError(f"item of answers {list(answer_ids)}: needs 2 to {MOST_ANSWERS} different answers")
        if (known is not None) != (kind in ("qualification", "hidden")):
            raise UserError(f"kind={kind!r}: qualification and hidden items, and no others, need a known ranking")
        if known is not None and len(known) == 1:
            raise UserError(f"known ranking {known}: ties all answers, so that nobody could be wrong; leave it out")
        if known is not None and sorted(id for group in known for id in group) != sorted(answer_ids):
            raise UserError(f"known ranking {known}: must hold each of the item's answers once")
        with self._database.writing() as connection:
            found = sa.select(answer_rows.c.id).where(
                answer_rows.c.id.in_(answer_ids), answer_rows.c.prompt_id == prompt_id
            )
            if len(connection.execute(found).all()) != len(answer_ids):
                raise UserError(f"item of answers {list(answer_ids)}: not all are answers to prompt {prompt_id}")
            values = {"kind": kind, "known": None if known is None else [list(group) for group in known]}
            return insert(
                connection, items, prompt_id=prompt_id, answer_ids=list(answer_ids), annotator=annotator, **values
            )

    def next(self, annotator: str) -> Assignment | None:
        """What `annotator` is to judge now: what was given and not judged yet, else something new; None if none is."""
        with self._database.writing() as connection:
            open_one = self._open_assignment(connection, annotator, items.c.kind != "talk", assignments.c.id)
            if open_one is not None:
                return open_one
            test = self._test(connection, annotator)[0]
            if test == "failed":
                return None
            item = self._new_item(connection, annotator, test)
            return None if item is None else self._assign(connection, annotator, item)

    def talk(
        self, annotator: str, messages: Sequence[Mapping[str, Any]], drawn: Sequence[Mapping[str, Any]]
    ) -> Assignment:
        """Store answers that were just made for `annotator`'s own conversation, and give them to `annotator`.

        `drawn`: what `append_answer` takes for each answer: text, model, seed, sampling.
        """
        with self._database.writing() as connection:
            prompt = self.store.append_prompt(messages, source="annotation page", asked_by=annotator)
            answer_ids = [self.store.append_answer(prompt, **answer) for answer in drawn]
            item = self.add_item(prompt, answer_ids, "talk", annotator=annotator)
            return self._assign(connection, annotator, item)

    def open_talk(self, annotator: str) -> Assignment | None:
        """The newest answers of `annotator`'s own conversation that wait for a judgement."""
        with self._database.reading() as connection:
            return self._open_assignment(connection, annotator, items.c.kind == "talk", assignments.c.id.desc())

    def judge(
        self,
        annotator: str,
        assignment_id: int,
        *,
        ranking: Sequence[Sequence[int]] = (),
        verdict: Verdict = "ranked",
        scores: Mapping[int, int] | None = None,
        flags: Mapping[str, Sequence[int]] | None = None,
        comment: str | None = None,
        seconds: float | None = None,
    ) -> int:
        """Store a judgement; answers are named by their place on the page, from 0. Returns the row's id.

        Of an assignment one judgement counts. The same one told again, by a page that did not hear the answer, adds
        nothing; another one, of somebody who changed their mind before the page was heard, is a row that replaces it.
        That of a qualification item stands once the test has been told how it ended.
        """
        with self._database.writing() as connection:
            given = self._assignment(connection, annotator, assignments.c.id == assignment_id)
            if given is None:
                raise UserError(f"assignment {assignment_id}: none of {annotator!r}; ask for the next one")
            if verdict == "withdrawn":
                raise UserError("verdict='withdrawn': take a judgement back with undo")
            if unknown := set(flags or {}) - set(FLAGS):
                raise UserError(f"flag {sorted(unknown)[0]!r}: unknown; use {', '.join(FLAGS)}")
            _check_places(ranking, len(given.answer_ids), verdict)
            ids = [[_at(given, place) for place in group] for group in ranking]
            details: Details = {
                "seconds": seconds,
                "verdict": verdict,
                "flags": {
                    name: [_at(given, place) for place in places] for name, places in (flags or {}).items() if places
                },
                "scores": {_at(given, place): score for place, score in (scores or {}).items()},
                "comment": comment,
            }
            told = sa.select(comparisons).where(comparisons.c.assignment_id == assignment_id, _stands)
            known = connection.execute(told).first()
            if known is not None:
                new = comparison_row(ids, annotator, **details)
                names = ("ranking", "verdict", "flags", "scores", "comment")
                same = [new[name] for name in names] == [getattr(known, name) for name in names]
                if same or self._last(connection, annotator, known.id) is None:
                    return int(known.id)
            return self.store.append_comparison(
                given.prompt_id,
                ids,
                annotator=annotator,
                replaces=None if known is None else known.id,
                assignment_id=assignment_id,
                **details,
            )

    def undo(self, annotator: str, judgement: int | None = None) -> Assignment | None:
        """Take the last judgement that stands back, by one more row; returns its assignment, which is open again.

        `judgement`: the row that is meant, which a page names so that it may tell again what it heard no answer to: of
        one that was taken back already the assignment is returned if it is open still, and nothing is written.
        """
        with self._database.writing() as connection:
            if judgement is not None and (again := self._taken_back(connection, annotator, judgement)) is not None:
                return self._open_assignment(connection, annotator, assignments.c.id == again, assignments.c.id)
            last = self._last(connection, annotator, judgement)
            if last is None:
                return None
            given = self._assignment(connection, annotator, assignments.c.id == last.assignment_id)
            assert given is not None
            self.store.append_comparison(
                last.prompt_id,
                [],
                annotator=annotator,
                verdict="withdrawn",
                replaces=last.id,
                assignment_id=last.assignment_id,
            )
            return given

    def progress(self, annotator: str) -> Progress:
        """Where `annotator` stands. Hidden items are counted as all others are."""
        with self._database.reading() as connection:
            mine = sa.select(sa.func.count()).select_from(
                comparisons.join(assignments, comparisons.c.assignment_id == assignments.c.id).join(
                    items, assignments.c.item_id == items.c.id
                )
            )
            mine = mine.where(comparisons.c.annotator == annotator, items.c.kind != "qualification", _stands)
            available = sa.select(sa.func.count()).select_from(self._available(annotator).subquery())
            open_ones = self._open_ids(annotator).where(items.c.kind.in_(("ordinary", "hidden")))
            test, test_done, test_items = self._test(connection, annotator)
            last = self._last(connection, annotator)
            left = connection.execute(available).scalar_one() + self._hidden_left(connection, annotator)
            return Progress(
                done=connection.execute(mine).scalar_one(),
                left=left + len(connection.execute(open_ones).all()),
                test=test,
                test_done=test_done,
                test_items=test_items,
                last=None if last is None else last.id,
            )

    def known_rankings(self) -> dict[int, tuple[Kind, list[list[int]], list[int]]]:
        """By assignment: the kind of its item, the right ranking where one is known (else empty), the order shown."""
        chosen = sa.select(assignments.c.id, assignments.c.shown, items.c.kind, items.c.known)
        with self._database.reading() as connection:
            rows = connection.execute(chosen.join(items, assignments.c.item_id == items.c.id)).all()
        return {row.id: (row.kind, row.known or [], row.shown) for row in rows}

    # ------------------------------------------------------------------------------- inside

    def _last(self, connection: sa.Connection, annotator: str, judgement: int | None = None) -> sa.Row[Any] | None:
        """The judgement that `undo` takes back: the one that is meant, else the last; None where there is none."""
        mine = sa.select(comparisons, items.c.kind).join(assignments, comparisons.c.assignment_id == assignments.c.id)
        mine = mine.join(items, assignments.c.item_id == items.c.id)
        mine = mine.where(comparisons.c.annotator == annotator, _stands)
        if judgement is not None:
            mine = mine.where(comparisons.c.id == judgement)
        last = connection.execute(mine.order_by(comparisons.c.id.desc()).limit(1)).first()
        if last is not None and last.kind == "qualification" and self._test(connection, annotator)[0] != "open":
            return None  # a test that has been told how it ended is not taken again
        return last

    def _taken_back(self, connection: sa.Connection, annotator: str, judgement: int) -> int | None:
        """The assignment of a judgement of `annotator` that was taken back already; None of one that was not."""
        back = sa.select(comparisons.c.assignment_id).where(
            comparisons.c.replaces == judgement,
            comparisons.c.annotator == annotator,
            comparisons.c.verdict == "withdrawn",
        )
        return connection.execute(back).scalar()

    def _open_ids(self, annotator: str) -> sa.Select[Any]:
        judged = sa.exists(
            sa.select(comparisons.c.id).where(comparisons.c.assignment_id == assignments.c.id, _stands)
        ).correlate(assignments)
        chosen = sa.select(assignments.c.id).join(items, assignments.c.item_id == items.c.id)
        return chosen.where(assignments.c.annotator == annotator, ~judged)

    def _open_assignment(
        self, connection: sa.Connection, annotator: str, which: sa.ColumnElement[bool], order: Any
    ) -> Assignment | None:
        found = connection.execute(self._open_ids(annotator).where(which).order_by(order).limit(1)).scalar()
        return None if found is None else self._assignment(connection, annotator, assignments.c.id == found)

    def _assignment(
        self, connection: sa.Connection, annotator: str, which: sa.ColumnElement[bool]
    ) -> Assignment | None:
        chosen = sa.select(assignments, items.c.prompt_id, items.c.kind, prompts.c.messages)
        chosen = chosen.join(items, assignments.c.item_id == items.c.id).join(
            prompts, items.c.prompt_id == prompts.c.id
        )
        row = connection.execute(chosen.where(which, assignments.c.annotator == annotator)).first()
        if row is None:
            return None
        texts = {
            answer.id: answer.text
            for answer in connection.execute(sa.select(answer_rows).where(answer_rows.c.id.in_(row.shown)))
        }
        return Assignment(
            row.id,
            row.item_id,
            row.prompt_id,
            row.kind,
            row.messages,
            row.shown,
            [texts[answer_id] for answer_id in row.shown],
            in_utc(row.created_at),
        )

    def _available(self, annotator: str) -> sa.Select[Any]:
        """Ordinary items on prompts that `annotator` was never given, with a place left."""
        seen = sa.select(items.c.prompt_id).join(assignments, assignments.c.item_id == items.c.id)
        seen = seen.where(assignments.c.annotator == annotator)
        begun_after = datetime.now(UTC) - timedelta(seconds=self.settings.assignment_seconds)
        standing = sa.select(comparisons.c.verdict).where(comparisons.c.assignment_id == assignments.c.id, _stands)
        verdict = standing.correlate(assignments).limit(1).scalar_subquery()
        # Judged, or given to somebody not long ago who has not judged yet. Who skips leaves the place to another.
        taken = sa.select(sa.func.count()).select_from(assignments).where(assignments.c.item_id == items.c.id)
        taken = taken.where(
            sa.or_(verdict == "ranked", sa.and_(verdict.is_(None), assignments.c.created_at > begun_after))
        )
        chosen = sa.select(items.c.id).where(
            items.c.kind == "ordinary",
            items.c.prompt_id.not_in(seen),
            sa.or_(items.c.annotator.is_(None), items.c.annotator == annotator),
            taken.correlate(items).scalar_subquery() < self.settings.annotators_per_item,
        )
        return chosen.order_by(items.c.id)

    def _new_item(self, connection: sa.Connection, annotator: str, test: Test) -> int | None:
        given = sa.select(assignments.c.item_id).where(assignments.c.annotator == annotator)
        unseen = sa.select(items.c.id).where(items.c.id.not_in(given)).order_by(items.c.id).limit(1)
        if test == "open":
            return connection.execute(unseen.where(items.c.kind == "qualification")).scalar()
        ordinary: int | None = connection.execute(self._available(annotator).limit(1)).scalar()
        hidden: int | None = None
        drawn = ordinary is None or _draw.random() < self.settings.hidden_share
        if drawn and self._hidden_left(connection, annotator):
            hidden = connection.execute(unseen.where(items.c.kind == "hidden")).scalar()
        return ordinary if hidden is None else hidden

    def _hidden_left(self, connection: sa.Connection, annotator: str) -> int:
        """How many hidden items this annotator will still get: their share of all items, whatever is drawn when.
        A count of what is left without them would stand still whenever one comes, and tell which they are."""
        counted = sa.select(items.c.kind, sa.func.count()).group_by(items.c.kind)
        n: dict[str, int] = dict(connection.execute(counted).all())
        share = self.settings.hidden_share
        due = min(n.get("hidden", 0), math.ceil(share / (1 - share) * n.get("ordinary", 0)))
        given = sa.select(sa.func.count()).select_from(assignments).join(items, assignments.c.item_id == items.c.id)
        given = given.where(assignments.c.annotator == annotator, items.c.kind == "hidden")
        return max(0, due - int(connection.execute(given).scalar_one()))

    def _assign(self, connection: sa.Connection, annotator: str, item_id: int) -> Assignment:
        shown = connection.execute(sa.select(items.c.answer_ids).where(items.c.id == item_id)).scalar_one()
        made = insert(
            connection,
            assignments,
            item_id=item_id,
            annotator=annotator,
            shown=_draw.sample(shown, len(shown)),
        )
        given = self._assignment(connection, annotator, assignments.c.id == made)
        assert given is not None
        return given

    def _test(self, connection: sa.Connection, annotator: str) -> tuple[Test, int, int]:
        """How the qualification test stands, how many of its items are judged, and how many there are."""
        known = dict(
            connection.execute(sa.select(items.c.id, items.c.known).where(items.c.kind == "qualification")).all()
        )
        judged = sa.select(assignments.c.item_id, comparisons.c.ranking).join(
            comparisons, comparisons.c.assignment_id == assignments.c.id
        )
        judged = judged.where(assignments.c.annotator == annotator, assignments.c.item_id.in_(known), _stands)
        told = dict(connection.execute(judged).all())
        if not known:
            return "none", 0, 0
        if len(told) < len(known):
            return "open", len(told), len(known)
        right = sum(follows(told[item], known[item]) for item in known)
        return ("passed" if right >= self.settings.pass_share * len(known) else "failed"), len(told), len(known)


def _check_places(ranking: Sequence[Sequence[int]], n_answers: int, verdict: Verdict) -> None:
    """Before places become ids: what the store says of a ranking names ids, whose order tells the models."""
    if verdict != "ranked":
        if ranking:
            raise UserError(f"verdict={verdict!r} with ranking {ranking}: leave the ranking empty")
    elif not all(ranking) or sorted(place for group in ranking for place in group) != list(range(n_answers)):
        raise UserError(
            f"ranking {ranking}: must hold each of the {n_answers} answers once, in groups that are not empty"
        )


def _at(given: Assignment, place: int) -> int:
    if not 0 <= place < len(given.answer_ids):
        raise UserError(f"answer {place}: there are {len(given.answer_ids)}, counted from 0")
    return given.answer_ids[place]
