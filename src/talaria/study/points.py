"""Rows of every arm in, one point a checkpoint out; and the interval over seeds that every finding is told with."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from talaria.eval.statistics import mean_interval
from talaria.report.results import ResultRow
from talaria.study.arm import LOSS_TASK
from talaria.world.symbols import TASKS, can_be_worked


@dataclass(frozen=True)
class Point:
    """One model at one checkpoint: what it has cost, its held-out loss, and its scores by question and metric."""

    corpus: str
    seed: int
    params: int
    tokens: int
    flops: float
    loss: float
    scores: dict[str, dict[str, float]]

    def exact(self, question: str) -> float:
        return self.scores[question]["exact_match"]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % interval (Student's t); one seed has none."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies above or below zero, else 0."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "seeds": self.seeds}


def over_seeds(values: Sequence[float]) -> Interval:
    """The interval of values that are one a seed."""
    if len(values) < 2:
        return Interval(statistics.fmean(values), None, None, len(values))
    return Interval(*mean_interval(values), len(values))


def question(task: str, strategy: str) -> str:
    """How a task asked in one way is called: `fact`, `3-step worked`."""
    return f"{task} {strategy}" if can_be_worked(task) else task


def questions(corpus: str = "whole") -> list[str]:
    """Every question that a model of this corpus can be asked."""
    ways = ("direct",) if corpus == "no-steps" else ("direct", "worked")
    return [question(task, way) for task in TASKS for way in (ways if can_be_worked(task) else ("direct",))]


def points_of(rows: Iterable[ResultRow]) -> list[Point]:
    """Points in the order of corpus, seed, size and tokens."""
    together: dict[tuple[str, int, int, int, float], list[ResultRow]] = defaultdict(list)
    for row in rows:
        assert row.seed is not None and row.params is not None and row.tokens is not None and row.flops is not None
        together[row.model.rpartition("-")[0], row.seed, row.params, row.tokens, row.flops].append(row)
    points = []
    for key, several in sorted(together.items()):
        scores: dict[str, dict[str, float]] = defaultdict(dict)
        for row in several:
            scores[question(row.task, row.strategy)][row.metric] = row.score
        points.append(Point(*key, scores.pop(LOSS_TASK)["loss"], dict(scores)))
    return points


def last_points(points: Iterable[Point]) -> list[Point]:
    """The last checkpoint of each model."""
    last = {(point.corpus, point.seed, point.params): point for point in sorted(points, key=lambda one: one.tokens)}
    return list(last.values())
