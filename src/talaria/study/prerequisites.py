"""Which question must be mastered before which, and whether what a question is made of tells when it will be.

Every checkpoint of every size and seed is a witness. A question needs another if it is mastered nowhere without it, but
for one witness in twenty. What a composed question is made of is known (world/symbols.py), so the product of its
parts' scores predicts it with nothing fitted: its own score stays behind where composing is a task of its own.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from talaria.study.points import Interval, Point, over_seeds, question
from talaria.world.symbols import COMPOSED, PREREQUISITES

MASTERED = 0.5
"""Exact match from which on a question counts as mastered."""
FEWEST = 10
"""Witnesses below which nothing is said."""
_EXCEPTIONS = 0.05


@dataclass(frozen=True)
class Edge:
    """`later` is mastered at `witnesses` checkpoints, at `exceptions` of them without `earlier`; `earlier` is mastered
    without it at `alone`. `is_declared` where the one is made of the other."""

    earlier: str
    later: str
    witnesses: int
    exceptions: int
    alone: int
    is_declared: bool


@dataclass(frozen=True)
class Composed:
    """How well the product of a question's parts predicts it over all checkpoints: the mean of score minus product, the
    root of its mean square, beside that of a curve in the held-out loss that was fitted on the other seeds (None for
    one seed); and the first sizes, by parameters, at which score and product reach `MASTERED` (None: nowhere)."""

    question: str
    bias: Interval
    rms: float
    rms_by_loss: float | None
    reached_at: int | None
    predicted_at: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"bias": self.bias.to_json()}


def edges(points: Sequence[Point], asked: Sequence[str]) -> list[Edge]:
    """What needs what, without the edges that follow from two others."""
    mastered = {name: np.array([point.exact(name) >= MASTERED for point in points]) for name in asked}
    declared = {(part, whole) for whole in asked for part in parts_of(whole)}
    found: dict[tuple[str, str], Edge] = {}
    for earlier in asked:
        for later in asked:
            first, second = mastered[earlier], mastered[later]
            witnesses, exceptions, alone = int(second.sum()), int((second & ~first).sum()), int((first & ~second).sum())
            if earlier == later or witnesses < FEWEST or int((~first).sum()) < FEWEST:
                continue
            if exceptions <= _EXCEPTIONS * witnesses and alone > exceptions:
                is_declared = (earlier, later) in declared
                found[earlier, later] = Edge(earlier, later, witnesses, exceptions, alone, is_declared)
    return [
        edge
        for (earlier, later), edge in found.items()
        if not any((earlier, between) in found and (between, later) in found for between in asked)
    ]


def parts_of(name: str) -> list[str]:
    """The questions that a composed one is made of; none for a simple one. A worked chain rests on the direct first
    step, since a single step is no chain."""
    return next(
        (
            [question(part, "direct") for part in PREREQUISITES[task]]
            for task in COMPOSED
            for way in ("direct", "worked")
            if question(task, way) == name
        ),
        [],
    )


def compositions(points: Sequence[Point], last: Sequence[Point], asked: Sequence[str]) -> list[Composed]:
    """Every composed question beside the product of its parts. `last` are the final checkpoints of each size."""
    found = []
    for name in asked:
        parts = parts_of(name)
        if not parts:
            continue
        gaps: dict[int, list[float]] = defaultdict(list)
        for point in points:
            gaps[point.seed].append(point.exact(name) - _product(point, parts))
        every = [gap for several in gaps.values() for gap in several]
        found.append(
            Composed(
                question=name,
                bias=over_seeds([statistics.fmean(several) for several in gaps.values()]),
                rms=math.sqrt(statistics.fmean(gap * gap for gap in every)),
                rms_by_loss=_rms_by_loss(points, name),
                reached_at=_first(last, [point.exact(name) for point in last]),
                predicted_at=_first(last, [_product(point, parts) for point in last]),
            )
        )
    return found


def _product(point: Point, parts: Sequence[str]) -> float:
    return math.prod(point.exact(part) for part in parts)


def _first(last: Sequence[Point], scores: Sequence[float]) -> int | None:
    """Parameters of the smallest size whose mean over seeds is mastered."""
    by_size: dict[int, list[float]] = defaultdict(list)
    for point, score in zip(last, scores, strict=True):
        by_size[point.params].append(score)
    return next((size for size, several in sorted(by_size.items()) if statistics.fmean(several) >= MASTERED), None)


def _rms_by_loss(points: Sequence[Point], name: str) -> float | None:
    """Error of a cubic in the loss, each seed predicted from the others."""
    seeds = sorted({point.seed for point in points})
    if len(seeds) < 2:
        return None
    squares = []
    for seed in seeds:
        others = [point for point in points if point.seed != seed]
        curve = np.polyfit([point.loss for point in others], [point.exact(name) for point in others], 3)
        squares += [
            (point.exact(name) - float(np.clip(np.polyval(curve, point.loss), 0, 1))) ** 2
            for point in points
            if point.seed == seed
        ]
    return math.sqrt(statistics.fmean(squares))
