"""Pictures of a fit and of curves over scale, as PNG files. They need matplotlib (the extra `eval`)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from talaria.errors import UserError
from talaria.files import atomic_write
from talaria.scaling.fit import Fit
from talaria.scaling.isoflop import Valley
from talaria.scaling.laws import LAWS
from talaria.scaling.points import Array, Points
from talaria.scaling.ray import RayPrediction

_LABELS = {"params": "parameters", "tokens": "training tokens", "flops": "training FLOPs"}
_LOSS = "loss, nats a token"


def draw_fit(fit: Fit, points: Points, folder: Path) -> list[Path]:
    """`<law>_fit.png`, loss over its axis with the law's curves, and `<law>_residuals.png`."""
    figure, (left, right) = _figure(1, 2)
    assert fit.theta is not None
    law = LAWS[fit.law]
    predicted = np.exp(law.predict(fit.theta[None], points)[0][0])
    name = "flops" if fit.law == "broken" else "tokens"
    colours = None if fit.law == "broken" else np.log10(points.params)
    axis = getattr(points, name)
    drawn = left.scatter(axis, points.loss, c=colours, s=12, label="runs")
    order = np.argsort(axis)
    left.plot(axis[order], predicted[order], ".", color="black", markersize=3, label=f"{fit.law}'s law")
    scale = _loss_scale(points.loss)
    left.set(xscale="log", yscale=scale, xlabel=_LABELS[name], ylabel=_LOSS, title=f"{fit.law}: {len(points)} runs")
    left.legend()
    if colours is not None:
        figure.colorbar(drawn, ax=left, label="log10 of the parameters")
    right.scatter(predicted, points.loss, s=12)
    ends = [points.loss.min(), points.loss.max()]
    right.plot(ends, ends, color="black", linewidth=1)
    right.set(xscale=scale, yscale=scale, xlabel=f"predicted {_LOSS}", ylabel=_LOSS)
    written = [_save(figure, folder / f"{fit.law}_fit.png")]
    names = ["flops"] if fit.law == "broken" else ["params", "tokens", "flops"]
    figure, axes = _figure(1, len(names))
    for place, (one, x) in enumerate(zip(axes, names, strict=True)):
        one.axhline(0, color="black", linewidth=1)
        one.scatter(getattr(points, x), 100 * np.expm1(fit.residuals), s=12)
        one.set(xscale="log", xlabel=_LABELS[x], ylabel="loss over prediction, %" if place == 0 else "")
    return [*written, _save(figure, folder / f"{fit.law}_residuals.png")]


def draw_ray(
    sizes: Sequence[float],
    losses: Sequence[float],
    target: float,
    law: RayPrediction,
    reached: float | None,
    folder: Path,
) -> list[Path]:
    """`ladder.png`: the rungs, the laws through them, and the run that they predict."""
    figure, (axis,) = _figure(1, 1, width=6.0)
    n, low, middle, high = (np.array(column) for column in zip(*law.at, strict=True))
    level = f"{100 * law.level:.0f} %"
    axis.fill_between(n, low, high, alpha=0.25, label=f"{level} of the laws that the rungs admit")
    axis.plot(n, middle, linewidth=1)
    axis.scatter(sizes, losses, s=14, color="black", label="rungs")
    axis.errorbar(
        [target], [law.value], [[law.value - law.low], [law.high - law.value]], fmt="o", capsize=4, color="C1",
        label=f"predicted run, {level}",
    )  # fmt: skip
    if reached is not None:
        axis.scatter([target], [reached], marker="x", s=60, color="C3", label="reached", zorder=3)
    axis.set(xscale="log", yscale=_loss_scale(np.append(losses, law.value)), ylabel=f"held-out {_LOSS}")
    axis.set(xlabel="parameters without embeddings")
    ends = (min(sizes), max(sizes), target)
    axis.set_xticks(ends, [f"{n:,.0f}" for n in ends])
    axis.set_xticks([], minor=True)
    axis.legend()
    return [_save(figure, folder / "ladder.png")]


def draw_isoflop(fit: Fit, points: Points, valleys: Sequence[Valley], folder: Path) -> list[Path]:
    """`isoflop_fit.png`: the parabolas, the line through their bottoms, and the bottoms about it."""
    figure, (left, right, off) = _figure(1, 3)
    for valley in valleys:
        x = np.log(points.params[valley.rows])
        line = np.linspace(x.min(), x.max(), 50)
        (curve,) = left.plot(np.exp(line), np.polyval(valley.parabola, line - valley.centre), linewidth=1)
        left.scatter(points.params[valley.rows], points.loss[valley.rows], s=12, color=curve.get_color())
    left.set(xscale="log", xlabel=_LABELS["params"], ylabel=_LOSS, title="one colour a budget")
    inside = [valley for valley in valleys if valley.is_inside]
    budgets = np.array([valley.flops for valley in inside])
    _draw_allocation(right, off, fit, budgets, np.array([valley.best for valley in inside]))
    return [_save(figure, folder / "isoflop_fit.png")]


def draw_envelope(fit: Fit, points: Points, envelope: Array, folder: Path) -> list[Path]:
    """`envelope_fit.png`: the runs, the best size at each budget, and these about their line."""
    figure, (left, right, off) = _figure(1, 3)
    drawn = left.scatter(points.flops, points.loss, c=np.log10(points.params), s=12)
    figure.colorbar(drawn, ax=left, label="log10 of the parameters")
    scale = _loss_scale(points.loss)
    left.set(xscale="log", yscale=scale, xlabel=_LABELS["flops"], ylabel=_LOSS, title=f"{len(points)} rows")
    _draw_allocation(right, off, fit, np.exp(envelope[:, 0]), np.exp(envelope[:, 1]))
    return [_save(figure, folder / "envelope_fit.png")]


def _draw_allocation(axis: Any, off: Any, fit: Fit, budgets: Array, best: Array) -> None:
    """The best sizes with the law, and beside it their residuals."""
    a, n_0 = fit.coefficients["a"], fit.coefficients["N_0"]
    off.axhline(0, color="black", linewidth=1)
    off.scatter(budgets, 100 * np.expm1(fit.residuals), s=12)
    off.set(xscale="log", xlabel=_LABELS["flops"], ylabel="best size over the law's, %")
    axis.scatter(budgets, best, s=12)
    axis.plot(budgets, n_0 * budgets**a, color="black", linewidth=1, label=f"N ~ C^{a:.3f}")
    axis.set(xscale="log", yscale="log", xlabel=_LABELS["flops"], ylabel="best parameters")
    axis.legend()


def draw_curves(tasks: dict[str, dict[str, tuple[Array, Array, Array | None]]], scale: str, path: Path) -> Path:
    """One row of pictures a task, one picture a metric: (scales, scores, standard errors or None), side by side."""
    columns = max(len(metrics) for metrics in tasks.values())
    figure, axes = _figure(len(tasks), columns, width=3.2, height=2.4)
    grid = np.array(axes, dtype=object).reshape(len(tasks), columns)
    for row, (task, metrics) in enumerate(tasks.items()):
        for column in range(columns):
            if column >= len(metrics):
                grid[row, column].set_visible(False)
                continue
            name = list(metrics)[column]
            scales, scores, errors = metrics[name]
            two = None if errors is None else 2 * errors
            grid[row, column].errorbar(scales, scores, yerr=two, fmt="o-", markersize=3, linewidth=1)
            grid[row, column].set(xscale="log" if scales.min() > 0 else "symlog", title=f"{task}\n{name}", xlabel=scale)
            grid[row, column].title.set_fontsize(7)
    return _save(figure, path)


def _loss_scale(loss: Array) -> str:
    """A log axis is for losses over several powers of two: below, its numbers are crowded and say 2.4 x 10^0."""
    return "log" if loss.max() > 5 * loss.min() else "linear"


def _figure(rows: int, columns: int, width: float = 5.0, height: float = 4.0) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib; install it with: pip install 'talaria-lm[eval]'") from None
    figure = Figure(figsize=(width * columns, min(height * rows, 600.0)), layout="constrained")
    axes = figure.subplots(rows, columns)
    return figure, [axes] if rows * columns == 1 else axes


def _save(figure: Any, path: Path) -> Path:
    buffer = io.BytesIO()
    dots = min(110, math.floor(60_000 / max(figure.get_size_inches())))  # the format's largest side is 65,535 dots
    figure.savefig(buffer, format="png", dpi=max(dots, 20))
    atomic_write(path, buffer.getvalue())
    return path
