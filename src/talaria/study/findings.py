"""Everything that the study says, as numbers: rows of every arm in, one JSON-ready record out.

    record = findings(rows, settings)

Intervals are 95 %, Student's t over seeds. Sizes are compared at their last checkpoint unless training is the scale.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from talaria.report.results import ResultRow, wilson_interval
from talaria.scaling.all_or_nothing import steps_between
from talaria.scaling.emergence import Score, judge
from talaria.study.arm import LOSS_TASK
from talaria.study.points import Interval, Point, last_points, over_seeds, points_of, question, questions
from talaria.study.prerequisites import compositions, edges
from talaria.study.settings import StudySettings
from talaria.study.stopping import stopped_early
from talaria.world.symbols import COMPOSED, MOST_STEPS, STATES

KINDS_SOUGHT = ("steady", "sudden", "U-shaped", "inverse")
_METRICS = ("exact_match", "answer_log_prob")
"""All or nothing, and smooth: what the comparisons are told in."""


def findings(rows: Sequence[ResultRow], settings: StudySettings) -> dict[str, Any]:
    """The record of a study; what too few seeds, sizes or corpora cannot tell is empty or None in it."""
    points = points_of(rows)
    whole = [point for point in points if point.corpus == "whole"]
    last = last_points(points)
    of_whole = [point for point in last if point.corpus == "whole"]
    asked = questions()
    return {
        "settings": settings.model_dump(),
        "seeds": sorted({point.seed for point in points}),
        "sizes": sorted({point.params for point in points}),
        "curves": {scale: curves_over(rows, scale) for scale in ("params", "tokens")},
        "steps": _powers(rows, of_whole),
        "worked": _worked(last),
        "code": _between(last, "whole", "no-code", questions()),
        "stopped": [
            {"metric": metric} | one.to_json() for metric in _METRICS for one in stopped_early(whole, asked, metric)
        ],
        "edges": [asdict(edge) for edge in edges(whole, asked)],
        "compositions": [one.to_json() for one in compositions(whole, of_whole, asked)],
        "loss": against_loss(whole, asked),
    }


def curves_over(rows: Sequence[ResultRow], scale: str) -> dict[str, dict[str, Any]]:
    """The kind of each question's curve over size, or over the training of the largest size; by exact match alone, and
    with every metric."""
    of_whole = [row for row in rows if row.model.startswith("whole-") and row.task != LOSS_TASK]
    if scale == "params":
        last = max(row.tokens or 0 for row in of_whole)
        kept = [row for row in of_whole if row.tokens == last]
    else:
        largest = max(row.params or 0 for row in of_whole)
        kept = [row for row in of_whole if row.params == largest]
    scores = [
        Score(float(getattr(row, scale)), question(row.task, row.strategy), row.metric, row.score, row.stderr, row.n)
        for row in kept
    ]
    end = max(score.scale for score in scores)
    alone = {verdict.task: verdict for verdict in judge(score for score in scores if score.metric == "exact_match")}
    told = {}
    for verdict in judge(scores):
        exact = alone[verdict.task]
        metric = exact.metrics[0]
        rows_at_end = [row for row in kept if float(getattr(row, scale)) == end and row.metric == "exact_match"]
        told[verdict.task] = {
            "beats_chance": _beats_chance(
                [row for row in rows_at_end if question(row.task, row.strategy) == verdict.task]
            ),
            "exact_alone": exact.kind,
            "exact_curve": metric.curve.kind,
            "kind": verdict.kind,
            "probability": verdict.probability,
            "reason": verdict.reason,
            "by_metric": {one.metric: one.curve.kind for one in verdict.metrics},
            "looks_like_steps": None
            if metric.steps is None
            else {"n": metric.steps.steps, "low": metric.steps.low, "high": metric.steps.high, "p": metric.steps.p_fit},
        }
    return told


def _beats_chance(rows: Sequence[ResultRow]) -> bool:
    """Whether the seeds' pooled exact match lies above guessing every state of the answer, by its Wilson interval. A
    model that has only learned that states follow guesses so, and every smooth metric rises on the way."""
    n = sum(row.n for row in rows)
    if not n:
        return False
    task, worked = rows[0].task, rows[0].strategy == "worked"
    states = (int(task[0]) if task.endswith("-step") else 2) if worked else 1
    return wilson_interval(sum(row.score * row.n for row in rows), n)[0] > (1 / len(STATES)) ** states


def _powers(rows: Sequence[ResultRow], of_whole: Sequence[Point]) -> list[dict[str, Any]]:
    """For k worked steps: n of exact = step^n, from each step's share of right states behind right ones, over the
    sizes; and how far the k-th power of a single step's score misses the exact match, worked and direct."""
    told = []
    by_seed: dict[int, list[Point]] = defaultdict(list)
    for point in of_whole:
        by_seed[point.seed].append(point)
    for k in range(2, MOST_STEPS + 1):
        name = question(f"{k}-step", "worked")
        powers = []
        for several in by_seed.values():
            part = np.array([point.scores[name]["step_accuracy"] for point in several])
            power = steps_between(part, np.array([point.exact(name) for point in several]), np.ones(len(several)))
            powers += [] if power is None else [power]
        misses = {
            way: _seeds_mean(of_whole, [one.exact(f"{k}-step {way}") - one.exact("1-step") ** k for one in of_whole])
            for way in ("worked", "direct")
        }
        told.append(
            {
                "k": k,
                "n": over_seeds(powers).to_json() if powers else None,
                "misses": {way: one.to_json() for way, one in misses.items()},
            }
        )
    return told


def _worked(last: Sequence[Point]) -> dict[str, Any]:
    """Worked less direct at the largest size; and, asked directly, what training on worked steps did: whole less
    no-steps."""
    largest = max(point.params for point in last)
    whole = [point for point in last if point.corpus == "whole" and point.params == largest]
    asked = {}
    for task in COMPOSED:
        direct, worked = ([one.exact(f"{task} {way}") for one in whole] for way in ("direct", "worked"))
        gaps = [after - before for before, after in zip(direct, worked, strict=True)]
        told = {"direct": direct, "worked": worked, "difference": gaps}
        asked[task] = {name: _seeds_mean(whole, values).to_json() for name, values in told.items()}
    return {"asked": asked, "trained": _between(last, "whole", "no-steps", questions("no-steps"))}


def _between(last: Sequence[Point], one: str, other: str, asked: Sequence[str]) -> dict[str, Any]:
    """Scores on one corpus less those on another, the same sizes and seeds, averaged over the sizes of the upper half;
    and by size."""
    pairs: dict[tuple[int, int], dict[str, Point]] = defaultdict(dict)
    for point in last:
        pairs[point.seed, point.params][point.corpus] = point
    both = {key: found for key, found in pairs.items() if one in found and other in found}
    if not both:
        return {}
    sizes = sorted({params for _, params in both})
    upper = set(sizes[len(sizes) // 2 :])
    told: dict[str, Any] = {}
    for name in asked:
        told[name] = {}
        for metric in _METRICS:
            by_seed: dict[int, list[float]] = defaultdict(list)
            by_size: dict[int, list[float]] = defaultdict(list)
            for (seed, params), found in both.items():
                gap = found[one].scores[name][metric] - found[other].scores[name][metric]
                by_size[params].append(gap)
                if params in upper:
                    by_seed[seed].append(gap)
            whole = over_seeds([statistics.fmean(gaps) for gaps in by_seed.values()])
            told[name][metric] = whole.to_json() | {
                "by_size": {str(size): over_seeds(by_size[size]).to_json() for size in sizes}
            }
    return told


def against_loss(points: Sequence[Point], asked: Sequence[str]) -> dict[str, Any]:
    """A cubic of the score in the held-out loss over all checkpoints, sizes and seeds: the share of the score's
    variance that it explains, the deviation of its residuals, and their slope per doubling of parameters,
    within each seed."""
    told: dict[str, Any] = {}
    losses = np.array([point.loss for point in points])
    sizes = np.log2([point.params for point in points])
    seeds = np.array([point.seed for point in points])
    for name in asked:
        told[name] = {}
        for metric in _METRICS:
            scores = np.array([point.scores[name][metric] for point in points])
            residuals = scores - np.polyval(np.polyfit(losses - losses.mean(), scores, 3), losses - losses.mean())
            spread = float(((scores - scores.mean()) ** 2).sum())
            slopes = [float(np.polyfit(sizes[seeds == seed], residuals[seeds == seed], 1)[0]) for seed in set(seeds)]
            told[name][metric] = {
                "explained": None if spread < 1e-12 else 1 - float((residuals**2).sum()) / spread,
                "deviation": math.sqrt(float((residuals**2).mean())),
                "slope": over_seeds(slopes).to_json(),
            }
    return told


def _seeds_mean(points: Sequence[Point], values: Sequence[float]) -> Interval:
    """The mean of a value of each point over a seed's points, then the interval over seeds."""
    by_seed: dict[int, list[float]] = defaultdict(list)
    for point, value in zip(points, values, strict=True):
        by_seed[point.seed].append(value)
    return over_seeds([statistics.fmean(several) for several in by_seed.values()])
