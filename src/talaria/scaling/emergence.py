"""Scores over scale in; for each task the kind of its curve, whether a jump survives smooth metrics, and what comes
next.

    for verdict in judge(read_scores(Path("runs/laptop/eval/results.csv"), "params")): ...

A jump under a metric that is all or nothing (exact match, a choice by the largest likelihood) says nothing of the
model by itself: n steps of success p give p^n, and a threshold hides what happens below it (Schaeffer et al. 2023).
So a task is "sudden" only where every smooth metric at hand (log-likelihood, loss, partial credit, single steps)
jumps too; with none at hand a rise that may be a jump is "undetermined".
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from talaria.errors import UsageError, UserError
from talaria.report.results import COLUMNS, read_results
from talaria.scaling.all_or_nothing import Steps, fit_steps, steps_between
from talaria.scaling.curves import FEWEST_SCALES, KINDS, Curve, Series, classify, next_scale
from talaria.scaling.points import Array, read_columns

SCALES = ("params", "tokens", "flops", "step")
# Whole parts of a metric's name: "prob" is in "problems_solved" too, "ppl" in "application_accuracy".
_LOGS = {"log", "logp", "loglik", "loglikelihood", "logprob", "logprobs", "logit", "logits"}
_LOGARITHMIC = {"perplexity", "ppl"}
_LOSSES = {*_LOGARITHMIC, "loss", "logloss", "nll", "bits", "bpb", "bpc", "brier", "entropy", "crossentropy"}
_LOWER_IS_BETTER = {
    *(*_LOSSES, "distance", "error", "errors", "mse", "rmse", "mae", "wer", "cer"),
    *("difference", "stereotype"),  # of CrowS-Pairs
}
_SMOOTH_PARTS = {
    *(*_LOSSES, *_LOGS, "likelihood", "prob", "probs", "probability", "margin", "partial", "credit", "step", "steps"),
    *("token", "tokens", "edit", "f1", "bleu", "chrf", "rouge", "rougel", "similarity", "soft", "smooth"),
}
_ALL_OR_NOTHING = "exact"
"""A name with this part is of a metric that is never smooth, whatever its other parts: `multi_step_exact_match`."""
_GENTLE = 0.3
"""Share of the rise within one doubling up to which a curve of exact matches is told to be steady by itself, or twice
the share of an even rise where the scales are few."""


@dataclass(frozen=True)
class Score:
    """One metric of one task at one scale; `n` items and `stderr` where known."""

    scale: float
    task: str
    metric: str
    score: float
    stderr: float | None
    n: int | None


@dataclass(frozen=True)
class MetricCurve:
    """One metric's scores over scale, and what they say alone. `steps` is the p^n fit of a share."""

    metric: str
    is_smooth: bool
    scales: Array
    scores: Array
    errors: Array | None
    curve: Curve
    next_score: tuple[float, float, float]
    steps: Steps | None


@dataclass(frozen=True)
class Verdict:
    """What all metrics of a task say together."""

    task: str
    kind: str
    probability: float
    probabilities: dict[str, float]
    reason: str
    metrics: list[MetricCurve]
    next_scale: float | None
    """None where one scale alone tells no step."""
    steps_measured: float | None

    def to_json(self) -> dict[str, Any]:
        """What `talaria emergence --json` prints of a task."""
        metrics = {
            one.metric: {
                "kind": one.curve.kind,
                "is_smooth": one.is_smooth,
                "probabilities": {kind: round(value, 4) for kind, value in one.curve.probabilities.items()},
                "p_smooth": one.curve.p_smooth,
                "reason": one.curve.reason,
                "steps": None
                if one.steps is None
                else {"n": one.steps.steps, "low": one.steps.low, "high": one.steps.high, "p_fit": one.steps.p_fit},
                "next": dict(zip(("value", "low", "high"), one.next_score, strict=True)),
            }
            for one in self.metrics
        }
        return {
            "task": self.task,
            "kind": self.kind,
            "probability": round(self.probability, 4),
            "probabilities": {kind: round(value, 4) for kind, value in self.probabilities.items()},
            "reason": self.reason,
            "next_scale": self.next_scale,
            "steps_measured": self.steps_measured,
            "metrics": metrics,
        }


def is_smooth(metric: str, declared: Sequence[str] = ()) -> bool:
    """Whether a metric moves with every small change of the model; told by its name, or `declared`."""
    parts = _parts(metric)
    return metric in declared or (_ALL_OR_NOTHING not in parts and not _SMOOTH_PARTS.isdisjoint(parts))


def _is_lower_better(metric: str) -> bool:
    parts = _parts(metric)
    return "no" not in parts and not _LOWER_IS_BETTER.isdisjoint(parts)  # `no_errors` is a share of right answers


def _parts(metric: str) -> set[str]:
    """`stepAccuracy`, `step accuracy` and `step_accuracy` are {step, accuracy}; digits at an end are dropped but for
    `f1`'s."""
    parts = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", metric).lower())
    return {*parts, *(part.rstrip("0123456789") for part in parts)}


def read_scores(path: Path, scale: str = "params", names: Mapping[str, str] | None = None) -> list[Score]:
    """results.csv, or any CSV with the columns scale, task, metric, score and, where known, stderr and n.

    Of results.csv `scale` is the column that the curves go over; rows without it (baselines) are left out, and over
    params the last step of each model counts. Raises UserError with the line that cannot be right.
    """
    if scale not in SCALES:
        raise UsageError(f"--scale {scale}: unknown; known: {', '.join(SCALES)}")
    try:
        header = path.open(encoding="utf-8").readline().strip()
    except (OSError, UnicodeDecodeError):
        header = ""  # told by the reader below, which also knows .gz
    if not names and header == ",".join(COLUMNS):
        return _of_results(path, scale)
    wanted = ("scale", "task", "metric", "score", "stderr", "n")
    lines, cells = read_columns(path, names or {}, wanted)
    lacking = [name for name in wanted[:4] if name not in cells]
    if lacking:
        raise UserError(
            f"{path}:1: no column {', '.join(lacking)}; give a results.csv or the columns scale, task, metric, "
            "score and n, or name others by --columns, e.g. --columns scale=params"
        )
    scores = []
    for place, line in enumerate(lines):
        row = {name: values[place] for name, values in cells.items()}
        value = _number(path, line, "score", row["score"])
        at = _number(path, line, "scale", row["scale"])
        n = _number(path, line, "n", row["n"]) if row.get("n") else None
        stderr = _number(path, line, "stderr", row["stderr"]) if row.get("stderr") else None
        if at < 0 or (n is not None and (n < 1 or n != int(n))) or (stderr is not None and stderr < 0):
            raise UserError(
                f"{path}:{line}: scale and stderr must be 0 or more and n a whole number of items; mend this row"
            )
        scores.append(Score(at, row["task"], row["metric"], value, stderr, None if n is None else int(n)))
    return scores


def judge(scores: Iterable[Score], declared: Sequence[str] = (), seed: int = 0) -> list[Verdict]:
    """A verdict for each task, in the order in which they come."""
    by_task: dict[str, dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        by_task[score.task][score.metric].append(score)
    if not by_task:
        raise UserError("no scores with a scale; baselines have none, so evaluate models of several sizes")
    return [_judge_task(task, metrics, declared, seed) for task, metrics in by_task.items()]


def _judge_task(task: str, metrics: Mapping[str, list[Score]], declared: Sequence[str], seed: int) -> Verdict:
    found = [_metric_curve(name, rows, is_smooth(name, declared), seed) for name, rows in metrics.items()]
    smooth = [one for one in found if one.is_smooth and len(one.scales) >= FEWEST_SCALES]
    coarse = [one for one in found if not one.is_smooth and len(one.scales) >= FEWEST_SCALES]
    kind, probabilities, reason = _together(smooth, coarse)
    if not smooth and not coarse:
        reason = f"fewer than {FEWEST_SCALES} scales"
    probability = probabilities[kind] if kind in probabilities else max(probabilities.values())
    longest = max(found, key=lambda one: len(one.scales))
    ahead = 2 ** next_scale(_log2(longest.scales)) if len(longest.scales) > 1 else None
    return Verdict(task, kind, probability, probabilities, reason, found, ahead, _measured_steps(found))


def _together(smooth: list[MetricCurve], coarse: list[MetricCurve]) -> tuple[str, dict[str, float], str]:
    """The kind that all metrics give together: smooth ones decide where there are any."""
    deciding = smooth or coarse
    if not deciding:
        return "undetermined", dict.fromkeys(KINDS, 1 / len(KINDS)), ""
    probabilities = {kind: float(np.mean([one.curve.probabilities[kind] for one in deciding])) for kind in KINDS}
    if not smooth:
        first = coarse[0].curve
        risen = max(coarse, key=lambda one: one.curve.steepest)
        kinds = {one.curve.kind for one in coarse}
        gentle = max(_GENTLE, 2 / (len(risen.scales) - 1))
        if "sudden" in kinds or (kinds & {"steady"} and risen.curve.steepest > gentle):
            share = f"up to {100 * risen.curve.steepest:.0f} % of the rise within one doubling"
            return "undetermined", probabilities, f"{share} under {risen.metric}, and no smooth metric to compare with"
        return (first.kind, probabilities, first.reason) if len(kinds) == 1 else _most(probabilities)
    names = ", ".join(one.metric for one in smooth)
    jumps = [one for one in smooth if one.curve.kind == "sudden"]
    if len(jumps) == len(smooth):
        worst = max(one.curve.p_smooth for one in smooth)
        return "sudden", probabilities, f"the jump is in {names} too (smooth curves do so with p = {worst:.3f})"
    if jumps:
        # A jump that one smooth metric shows and another does not is none of the model: it did not survive.
        probabilities = _without_jump(probabilities)
        others = ", ".join(one.metric for one in smooth if one not in jumps)
        kind, probabilities, _ = _most(probabilities)
        return kind, probabilities, f"{jumps[0].metric} jumps, {others} does not"
    kinds = {one.curve.kind for one in smooth}
    if kinds == {"undetermined"}:
        return "undetermined", probabilities, smooth[0].curve.reason
    probabilities = _without_jump(probabilities)
    kind, reason = (smooth[0].curve.kind, smooth[0].curve.reason) if len(kinds) == 1 else _most(probabilities)[::2]
    if kind == "steady" and any(one.curve.kind == "sudden" for one in coarse):
        jump = next(one.metric for one in coarse if one.curve.kind == "sudden")
        reason = f"{jump} jumps, but {names} rises smoothly: the jump is the metric's"
    return kind, probabilities, reason


def _most(probabilities: dict[str, float]) -> tuple[str, dict[str, float], str]:
    kind = max(probabilities, key=lambda name: probabilities[name])
    if probabilities[kind] < 0.5:
        return "undetermined", probabilities, "the metrics disagree"
    return kind, probabilities, "most probable over the metrics together"


def _without_jump(probabilities: dict[str, float]) -> dict[str, float]:
    rest = {kind: 0.0 if kind == "sudden" else value for kind, value in probabilities.items()}
    total = sum(rest.values())
    return {kind: value / total for kind, value in rest.items()} if total > 0 else {**rest, "steady": 1.0}


def _measured_steps(found: list[MetricCurve]) -> float | None:
    """n of p^n where single steps and whole answers were both scored as shares at the same scales."""
    shares = [one for one in found if one.steps is not None and not _is_lower_better(one.metric)]
    parts = [one for one in shares if one.is_smooth]
    wholes = [one for one in shares if not one.is_smooth]
    for part in parts:
        for whole in wholes:
            if np.array_equal(part.scales, whole.scales) and np.all(whole.scores <= part.scores + 0.1):
                return steps_between(part.scores, whole.scores, np.ones(len(part.scales)))
    return None


def _metric_curve(metric: str, rows: list[Score], smooth: bool, seed: int) -> MetricCurve:
    """Scores at one scale (several seeds) are one: shares pooled, means averaged."""
    by_scale: dict[float, list[Score]] = defaultdict(list)
    for row in rows:
        by_scale[row.scale].append(row)
    scales = np.array(sorted(by_scale))
    groups = [by_scale[scale] for scale in scales]
    scores = np.array(
        [float(np.average([r.score for r in group], weights=[r.n or 1 for r in group])) for group in groups]
    )
    n = np.array([sum(r.n or 0 for r in group) for group in groups], dtype=np.float64)
    lower = _is_lower_better(metric)
    is_share = bool(np.all((scores >= 0) & (scores <= 1)) and np.all(n > 0)) and not lower
    is_share = is_share and _LOGS.isdisjoint(_parts(metric))
    given = [[r.stderr for r in group if r.stderr is not None] for group in groups]
    errors = None
    if all(len(known) == len(group) for known, group in zip(given, groups, strict=True)):
        errors = np.array([math.sqrt(sum(e * e for e in known)) / len(known) for known in given])
        errors = errors if np.any(errors > 0) else None
    x = _log2(scales)
    if is_share:
        # The arcsine of a share's root has one standard error everywhere, 1 / (2 sqrt n) (Anscombe 1948).
        curve = classify(Series(x, np.arcsin(np.sqrt(scores)), 0.5 / np.sqrt(n), float(n.sum())), seed)
        ahead = [math.sin(min(max(value, 0.0), math.pi / 2)) ** 2 for value in curve.next_y]
        steps = fit_steps(x, scores, n, next_scale(x)) if len(scales) >= FEWEST_SCALES else None
        shown = np.sqrt(scores * (1 - scores) / n) if errors is None else errors
        return MetricCurve(metric, smooth, scales, scores, shown, curve, (ahead[0], ahead[1], ahead[2]), steps)
    sign = -1.0 if lower else 1.0
    logarithmic = not _LOGARITHMIC.isdisjoint(_parts(metric)) and bool(np.all(scores > 0))
    y = sign * (np.log(scores) if logarithmic else scores)
    known_errors = None
    if errors is not None:
        known_errors = errors / scores if logarithmic else errors
        known_errors = np.maximum(known_errors, 1e-3 * max(float(np.ptp(y)), 1e-12))
    items = float(n.sum()) if known_errors is not None and np.all(n > 0) else None
    curve = classify(Series(x, y, known_errors, items), seed)
    back = [sign * value for value in curve.next_y]
    back = [math.exp(value) for value in back] if logarithmic else back
    return MetricCurve(metric, smooth, scales, scores, errors, curve, (back[0], min(back[1:]), max(back[1:])), None)


def _log2(scales: Array) -> Array:
    """log2 of scales; step 0, where training has not begun, stands one doubling before the first."""
    positive = scales[scales > 0]
    x: Array = np.log2(np.where(scales > 0, scales, positive.min() / 2 if len(positive) else 1.0))
    return x


def _of_results(path: Path, scale: str) -> list[Score]:
    rows = [row for row in read_results(path) if getattr(row, scale) is not None]
    if scale in ("params", "flops"):
        last: dict[tuple[str, int | None], int] = {}
        for row in rows:
            last[row.model, row.seed] = max(
                last.get((row.model, row.seed), -1), row.step if row.step is not None else -1
            )
        rows = [row for row in rows if (row.step if row.step is not None else -1) == last[row.model, row.seed]]
    several = len({row.params for row in rows}) > 1 and scale in ("step", "tokens")
    ways = defaultdict(set)
    for row in rows:
        ways[row.task].add((row.strategy, row.shots))
    scores = []
    for row in rows:
        task = row.task + (f" ({row.strategy}, {row.shots} shots)" if len(ways[row.task]) > 1 else "")
        task += f" [{row.params:,} params]" if several else ""
        for name, value in (("score", row.score), ("standard error", row.stderr)):
            if value is not None and not math.isfinite(value):
                raise UserError(
                    f"{path}: {row.metric} of {row.task} by {row.model}: its {name} is {value}; drop this row, or "
                    "evaluate again"
                )
        at = float(getattr(row, scale))
        scores.append(Score(at, task, row.metric, row.score, row.stderr, row.n))
    return scores


def _number(path: Path, line: int, name: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise UserError(f"{path}:{line}: {name} is {cell!r}, not a number; mend or drop this row") from None
    if not math.isfinite(value):
        raise UserError(f"{path}:{line}: {name} is {cell}; mend or drop this row")
    return value
