"""The section of the report that shows a ladder: its rungs, the laws through them, the run that they predict."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from talaria.report.chart import Series, line_chart
from talaria.report.run_data import RunData

_NEEDED = {"rungs", "times_larger", "loss", "reached", "warnings", "law", "points", "target"}


def ladder_section(data: RunData) -> str:
    """A sentence, the warnings, and loss over size; empty for a ladder.json of an earlier version."""
    assert data.ladder is not None
    if not data.ladder.keys() >= _NEEDED:
        return ""
    told, loss = data.ladder, data.ladder["loss"]
    reached = told["reached"] if told["reached"] is not None else _reached_since(data, loss)
    inside = reached is not None and loss["low"] <= reached <= loss["high"]
    held = "" if reached is None else f" It reached {reached:.3f}, {'inside' if inside else 'outside'}."
    sentence = (
        f"{told['rungs']} small runs predicted a held-out loss of {loss['value']:.3f} ({100 * loss['level']:.0f} %: "
        f"{loss['low']:.3f} to {loss['high']:.3f}) for pretraining, which takes {told['times_larger']:.1f} times the "
        f"compute of the largest of them.{held}"
    )
    notes = "".join(f'<p class="note">{escape(warning)}</p>' for warning in told["warnings"])
    law = told["law"]
    series = [
        Series("law", [(n, middle) for n, _, middle, _ in law]),
        Series("law, low", [(n, low) for n, low, _, _ in law], faint=True),
        Series("law, high", [(n, high) for n, _, _, high in law], faint=True),
        Series("rungs", sorted((n, y) for n, y in told["points"]), dots=True),
    ]
    target = told["target"]
    series.append(Series("predicted run", [(target, loss["low"]), (target, loss["high"])], dots=True))
    if reached is not None:
        series.append(Series("reached", [(target, reached)], dots=True))
    chart = line_chart(series, "Loss over size", "parameters without embeddings", "nats per token", log_x=True)
    return f'<p>{escape(sentence)}</p>{notes}<div class="charts">{chart}</div>'


def _reached_since(data: RunData, loss: dict[str, Any]) -> float | None:
    """The held-out loss of a run made after the ladder: the trainer held it against this very interval."""
    rows = [row for row in data.metrics.get("pretrain", []) if "held_out_loss" in row]
    if not rows or any(
        not math.isclose(rows[-1][f"expected_{end}"], loss[end], rel_tol=1e-6) for end in ("low", "high")
    ):
        return None
    return float(rows[-1]["held_out_loss"])
