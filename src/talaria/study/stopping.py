"""Is scale itself the cause? A large model stopped early against a small one at its end: at equal loss, and at equal
compute.

If scores hang on the loss alone, the two answer alike at equal loss, whatever their sizes. Between checkpoints the
large model's scores are read off straight lines over the log of its tokens.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from talaria.study.points import Interval, Point, over_seeds

APART = 2
"""Rungs between the small and the large model."""


@dataclass(frozen=True)
class Stopped:
    """The large model's score minus the small one's, over every pair of sizes two rungs apart, by question; and what
    the large one had spent by then, over what the small one had. `pairs` counts those that could be compared."""

    at: str
    differences: dict[str, Interval]
    compute: Interval
    pairs: int

    def to_json(self) -> dict[str, Any]:
        differences = {name: one.to_json() for name, one in self.differences.items()}
        return {"at": self.at, "compute": self.compute.to_json(), "pairs": self.pairs, "differences": differences}


def stopped_early(points: Sequence[Point], asked: Sequence[str], metric: str = "exact_match") -> list[Stopped]:
    """The comparison at equal loss and at equal compute, of one corpus; leaves out what no pair allows."""
    runs: dict[int, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        runs[point.seed][point.params].append(point)
    found = []
    for at in ("equal loss", "equal compute"):
        gaps: dict[str, list[float]] = defaultdict(list)
        ratios, pairs = [], 0
        for of_seed in runs.values():
            sizes = sorted(of_seed)
            of_pairs: dict[str, list[float]] = defaultdict(list)
            spent = []
            for small, large in zip(sizes, sizes[APART:], strict=False):
                end = of_seed[small][-1]
                tokens = _tokens_at(of_seed[large], end, at)
                if tokens is None:
                    continue
                flops = [math.log(one.flops) for one in of_seed[large]]
                spent.append(math.exp(_read(of_seed[large], tokens, flops)) / end.flops)
                for name in asked:
                    curve = [one.scores[name][metric] for one in of_seed[large]]
                    of_pairs[name].append(_read(of_seed[large], tokens, curve) - end.scores[name][metric])
            pairs += len(spent)
            if spent:
                ratios.append(statistics.fmean(spent))
                for name, values in of_pairs.items():
                    gaps[name].append(statistics.fmean(values))
        if ratios:
            told = {name: over_seeds(values) for name, values in gaps.items()}
            found.append(Stopped(at, told, over_seeds(ratios), pairs))
    return found


def _tokens_at(large: Sequence[Point], end: Point, at: str) -> float | None:
    """Log of the tokens at which the large model equals the small one's end; None where its checkpoints miss that."""
    tokens = np.log([one.tokens for one in large])
    reached = np.array([-one.loss for one in large] if at == "equal loss" else [one.flops for one in large])
    wanted = -end.loss if at == "equal loss" else end.flops
    behind = np.flatnonzero(reached >= wanted)
    if not len(behind) or behind[0] == 0:
        return None
    after = int(behind[0])
    if at == "equal compute":
        reached, wanted = np.log(reached), np.log(wanted)
    share = (wanted - reached[after - 1]) / (reached[after] - reached[after - 1])
    return float(tokens[after - 1] + share * (tokens[after] - tokens[after - 1]))


def _read(large: Sequence[Point], tokens: float, values: Sequence[float]) -> float:
    return float(np.interp(tokens, np.log([one.tokens for one in large]), values))
