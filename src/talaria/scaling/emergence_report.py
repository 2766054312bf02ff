"""`talaria emergence`: the table that a person reads, and the pictures of every metric over scale side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from talaria.scaling.emergence import Verdict
from talaria.scaling.pictures import draw_curves

_TASKS_A_PICTURE = 12
_FITS = 0.05
"""p-value of p^n from which on its number of steps is worth telling."""


def verdict_table(verdicts: Sequence[Verdict], scale: str) -> Table:
    """One row a task: its kind, why, and where each metric would land at the next scale (80 % interval)."""
    table = Table(title=f"Curves over {scale}", title_justify="left", box=SIMPLE)
    for column in ("task", "kind", "probability", "why", f"at the next {scale}"):
        table.add_column(column, overflow="fold")
    for verdict in verdicts:
        landing = [
            f"{one.metric} {one.next_score[0]:.3g} ({one.next_score[1]:.3g} to {one.next_score[2]:.3g})"
            for one in verdict.metrics
        ]
        steps = [
            f"{one.metric} looks like {one.steps.steps:g} steps ({one.steps.low:g} to {one.steps.high:g})"
            for one in verdict.metrics
            if one.steps is not None and one.steps.p_fit > _FITS and one.steps.steps > 1
            if not one.is_smooth and verdict.kind in ("steady", "sudden", "undetermined")
        ]
        why = "; ".join([verdict.reason, *steps])
        table.add_row(
            verdict.task,
            verdict.kind,
            _probability(verdict),
            why,
            "" if verdict.next_scale is None else f"{verdict.next_scale:.3g}: {', '.join(landing)}",
        )
    return table


def _probability(verdict: Verdict) -> str:
    """Of the kind; where none was found, of the likeliest one, with its name."""
    likeliest = max(verdict.probabilities, key=verdict.probabilities.__getitem__)
    name = f"{likeliest} " if verdict.kind not in verdict.probabilities else ""
    return f"{name}{verdict.probability:.2f}"


def pictures(verdicts: Sequence[Verdict], scale: str, path: Path) -> list[Path]:
    """PNG files with a row a task and a column a metric, a dozen tasks a file: `path`, then `-2`, `-3` before its
    suffix."""
    written = []
    for first in range(0, len(verdicts), _TASKS_A_PICTURE):
        number = first // _TASKS_A_PICTURE + 1
        place = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        tasks = {
            f"{verdict.task} ({verdict.kind})": {
                one.metric: (one.scales, one.scores, one.errors) for one in verdict.metrics
            }
            for verdict in verdicts[first : first + _TASKS_A_PICTURE]
        }
        written.append(draw_curves(tasks, scale, place))
    return written
