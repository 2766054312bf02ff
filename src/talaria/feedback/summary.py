"""What a feedback store holds, as tables: annotators, their speed and hidden items, and how far they agree.

summary = summarise(store, held_out={"eve"})
for table in summary_tables(summary): Console().print(table)
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from rich.table import Table

from talaria.feedback.agreement import Agreement, AgreementReport, follows, measure_agreement
from talaria.feedback.queue import AnnotationQueue
from talaria.feedback.store import Comparison, FeedbackStore, standing


@dataclass(frozen=True)
class Annotator:
    """One person's work. `first_shown` and `n_first` : how often the answer shown first was among the best, of how many
    comparisons without a tie for all; far from 1 / answers it tells that the place decided."""

    name: str
    ranked: int
    skipped: int
    corrected: int
    pairs: int
    ties: int
    median_seconds: float | None
    known_right: int
    known: int
    first_shown: int
    n_first: int


@dataclass(frozen=True)
class Summary:
    """`by_criterion`, `flags` and `answers` (how many answers a ranking has) count the choices that stand."""

    choices: int
    prompts: int
    annotators: list[Annotator]
    by_criterion: dict[str, int]
    flags: dict[str, int]
    answers: dict[int, int]
    agreement: AgreementReport


def summarise(store: FeedbackStore, held_out: Collection[str] = (), resamples: int = 2000, seed: int = 0) -> Summary:
    """Look at every row of the store; qualification and hidden items count towards themselves alone."""
    judgements = store.read_judgements()
    assigned = AnnotationQueue(store).known_rankings()
    known = {id: ranking for id, (_, ranking, _) in assigned.items() if ranking}
    shown = {id: order for id, (_, _, order) in assigned.items()}
    stands = standing(judgements)
    ranked = [row for row in stands if row.verdict == "ranked" and not row.is_check]
    corrected = Counter(row.annotator for row in judgements if row.replaces is not None)
    by_name: dict[str, list[Comparison]] = defaultdict(list)
    for row in stands:
        by_name[row.annotator].append(row)
    return Summary(
        choices=len(ranked),
        prompts=len({row.prompt_id for row in ranked}),
        annotators=[_annotator(name, rows, known, shown, corrected[name]) for name, rows in sorted(by_name.items())],
        by_criterion=dict(Counter(row.criterion or "overall" for row in ranked)),
        flags=dict(Counter(name for row in ranked for name, ids in row.flags.items() if ids)),
        answers=dict(Counter(sum(map(len, row.ranking)) for row in ranked)),
        agreement=measure_agreement(ranked, held_out, resamples, seed),
    )


def summary_tables(summary: Summary) -> list[Table]:
    """For a terminal."""
    people = Table(title=f"{summary.choices:,} choices on {summary.prompts:,} prompts", title_justify="left")
    for name in ("annotator", "ranked", "skipped", "undone", "ties", "seconds", "known", "first best"):
        people.add_column(name, justify="left" if name == "annotator" else "right", no_wrap=name == "annotator")
    for person in summary.annotators:
        seconds = "-" if person.median_seconds is None else f"{person.median_seconds:.1f}"
        known = f"{person.known_right}/{person.known}" if person.known else "-"
        first = f"{person.first_shown / person.n_first:.1%} of {person.n_first}" if person.n_first else "-"
        ties = f"{person.ties / person.pairs:.1%}" if person.pairs else "-"
        people.add_row(
            person.name, str(person.ranked), str(person.skipped), str(person.corrected), ties, seconds, known, first
        )
    agreement = Table(title="Agreement, with 95 % intervals over prompts", title_justify="left")
    for name in ("between", "pairs", "prompts", "same choice", "where neither ties", "alpha"):
        agreement.add_column(name, justify="left" if name == "between" else "right")
    rows = {
        "annotators": summary.agreement.among,
        "held-out annotators": summary.agreement.held_out,
        "held-out and others": summary.agreement.between,
    }
    rows |= {f"{name} and others": found for name, found in summary.agreement.by_annotator.items()}
    for name, found in rows.items():
        if found.n:
            agreement.add_row(name, str(found.n), str(found.n_prompts), *_shares(found))
    if not agreement.row_count:
        agreement.add_row("nobody", *["-"] * 5)
    return [people, agreement]


def _annotator(
    name: str,
    rows: list[Comparison],
    known: dict[int, list[list[int]]],
    shown: dict[int, list[int]],
    corrected: int,
) -> Annotator:
    ordinary = [row for row in rows if row.verdict == "ranked" and not row.is_check]
    seconds = [row.seconds for row in rows if row.seconds is not None]
    checks = [row for row in rows if row.is_check]
    ids = {row.id: [[answer.id for answer in group] for group in row.ranking] for row in rows}
    decided = [row for row in ordinary if row.assignment_id in shown and len(row.ranking) > 1]
    return Annotator(
        name=name,
        ranked=len(ordinary),
        skipped=sum(row.verdict == "skipped" for row in rows),
        corrected=corrected,
        pairs=sum(n * (n - 1) // 2 for n in (sum(map(len, row.ranking)) for row in ordinary)),
        ties=sum(len(group) * (len(group) - 1) // 2 for row in ordinary for group in row.ranking),
        median_seconds=statistics.median(seconds) if seconds else None,
        known_right=sum(follows(ids[row.id], known[row.assignment_id]) for row in checks if row.assignment_id),
        known=len(checks),
        first_shown=sum(shown[row.assignment_id][0] in ids[row.id][0] for row in decided if row.assignment_id),
        n_first=len(decided),
    )


def _shares(found: Agreement) -> list[str]:
    def told(value: float | None, low: float | None, high: float | None, form: str) -> str:
        if value is None or low is None or high is None:
            return "-"
        return f"{value:{form}} [{low:{form}}, {high:{form}}]"

    return [
        told(found.share, found.low, found.high, ".1%"),
        told(found.strict_share, found.strict_low, found.strict_high, ".1%"),
        told(found.alpha, found.alpha_low, found.alpha_high, ".2f"),
    ]
