"""Null baselines, computed from the items alone: what a score is worth when nothing was learned."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from talaria.eval.graders import is_right
from talaria.eval.items import Item, ranked_choices, task_version
from talaria.eval.statistics import binomial_stderr
from talaria.report.results import ResultRow


def chance_rows(by_task: Mapping[str, Sequence[Item]], max_choices: int) -> list[ResultRow]:
    """The expected score of guessing evenly among an item's choices, for tasks whose every item has choices.

    An expectation, known exactly, so it has no standard error. For `choice_accuracy` the guess is among the at most
    `max_choices` choices that the evaluation ranks.
    """
    rows = []
    for task, items in by_task.items():
        if not all(item.choices for item in items):
            continue
        chosen = {"accuracy": [len(item.choices or ()) for item in items]}
        chosen["choice_accuracy"] = [len(ranked_choices(item, max_choices)) for item in items]
        for metric, counts in chosen.items():
            score = statistics.fmean(1 / count for count in counts)
            rows.append(_row("chance", task, items, metric, score, None, len(items)))
    return rows


def majority_rows(by_task: Mapping[str, Sequence[Item]]) -> list[ResultRow]:
    """The score of always giving the relation's most frequent gold answer (the first of equals).

    The answers are counted on the very items it is scored on, which can only flatter this baseline.
    """
    rows = []
    for task, items in by_task.items():
        answers: dict[str | None, Counter[str]] = {}
        for item in items:
            answers.setdefault(item.relation, Counter())[item.answer] += 1
        favourite = {relation: counts.most_common(1)[0][0] for relation, counts in answers.items()}
        right = sum(is_right(item, favourite[item.relation]) for item in items)
        n = len(items)
        rows.append(_row("majority", task, items, "accuracy", right / n, binomial_stderr(right, n), n))
    return rows


def _row(
    model: str, task: str, items: Sequence[Item], metric: str, score: float, stderr: float | None, n: int
) -> ResultRow:
    return ResultRow(
        model=model,
        params=None,
        tokens=None,
        flops=None,
        seed=None,
        step=None,
        task=task,
        task_version=task_version(items),
        strategy="null",
        shots=0,
        metric=metric,
        score=score,
        stderr=stderr,
        n=n,
    )
