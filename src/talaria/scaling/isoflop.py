"""Chinchilla's second way (Hoffmann et al. 2022, section 3.2): for each budget a parabola of loss over log N, whose
bottom is the best size, and N = N_0 C^a and D = D_0 C^b through these."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from talaria.errors import UserError
from talaria.scaling.allocation import SAME_BUDGET, SAME_SIZE, clusters, held_out, power_laws
from talaria.scaling.fit import Fit
from talaria.scaling.points import Array, Index, Points

_FEWEST_SIZES = 5
"""Of a budget, below which its parabola leaves one residual or none to tell its own error by."""


@dataclass(frozen=True)
class Valley:
    """One budget's parabola of loss over z = log N - centre, highest power first, and its bottom."""

    flops: float
    centre: float
    parabola: Array
    rows: Index
    best: float
    is_inside: bool


def fit_isoflop(points: Points, draws: int = 1000, seed: int = 0) -> tuple[Fit, list[Valley]]:
    """Power laws through the bottoms of the parabolas. The bootstrap resamples the residuals of all parabolas
    together, relative to the loss: a parabola through three or four sizes hardly has residuals of its own.

    Raises UserError where fewer than two budgets have a bottom, or where no residual is left to tell an error by.
    """
    valleys = [valley for rows in clusters(np.log(points.flops), SAME_BUDGET) if (valley := _valley(points, rows))]
    inside = [valley for valley in valleys if valley.is_inside]
    if len(inside) < 2:
        raise UserError(
            f"{len(inside)} of {len(valleys)} budgets have a best size between their smallest and largest (3 sizes "
            "or more a budget are needed); give two budgets or more, with sizes on both sides of the best"
        )
    pooled, spare = _pooled(points, inside)
    if spare == 0:
        raise UserError(
            "every budget has three rows, through which a parabola goes whatever their errors: there is no interval; "
            "add a fourth size, better five"
        )
    generator = np.random.default_rng(seed)
    # The residuals' own spread is known from `spare` of them alone, so each draw has one of its own (Student's t).
    spread = np.sqrt(spare / generator.chisquare(spare, draws))
    bottoms = np.stack([_drawn_bottoms(points, valley, pooled, spread, generator) for valley in inside], axis=1)
    log_c, log_n = np.log([valley.flops for valley in inside]), np.log([valley.best for valley in inside])
    slope, offset = np.polyfit(log_c, log_n, 1)
    lines, residuals = np.polyfit(log_c, bottoms.T, 1).T, log_n - (offset + slope * log_c)
    fit = power_laws("isoflop", slope, offset, lines, residuals, len(points), seed)
    if len(inside) > 3:
        earlier = np.polyfit(log_c[:-1], bottoms[:, :-1].T, 1)
        off = np.polyval(earlier, log_c[-1]) - bottoms[:, -1]
        error = np.polyval(np.polyfit(log_c[:-1], log_n[:-1], 1), log_c[-1]) - log_n[-1]
        low, high = np.quantile(off - off.mean(), [0.05, 0.95])
        fit = replace(fit, held_out=held_out(np.array([error]), int(low <= error <= high)))
    for valley in valleys:
        if not valley.is_inside:
            fit.warnings.append(
                f"budget {valley.flops:.3g}: its best size lies beyond the sizes tried, so it is left out; add "
                "sizes there"
            )
    few = [valley for valley in inside if _n_sizes(points, valley.rows) < _FEWEST_SIZES]
    if few:
        budgets = ", ".join(f"{valley.flops:.3g}" for valley in few)
        fit.warnings.append(
            f"fewer than {_FEWEST_SIZES} sizes at budget {budgets}: whether a parabola fits there "
            "cannot be seen, and its error is told by the other rows; add sizes"
        )
    if len(inside) < 3:
        fit.warnings.append("two budgets alone: the line through them has no residual; add a third")
    return fit, valleys


def _valley(points: Points, rows: Index) -> Valley | None:
    x = np.log(points.params[rows])
    if _n_sizes(points, rows) < 3:
        return None
    centre = float(x.mean())
    parabola = np.polyfit(x - centre, points.loss[rows], 2)
    bottom = -parabola[1] / (2 * parabola[0]) + centre if parabola[0] > 0 else np.nan
    budget = float(np.exp(np.log(points.flops[rows]).mean()))
    is_inside = bool(np.isfinite(bottom) and x.min() < bottom < x.max())
    return Valley(budget, centre, parabola, rows, float(np.exp(bottom)), is_inside)


def _n_sizes(points: Points, rows: Index) -> int:
    return len(clusters(np.log(points.params[rows]), SAME_SIZE))


def _pooled(points: Points, valleys: list[Valley]) -> tuple[Array, int]:
    """Residuals over the loss of all parabolas with more rows than coefficients, widened for the three that each fit
    takes, and the degrees of freedom left."""
    found, spare = [np.empty(0)], 0
    for valley in valleys:
        n = len(valley.rows)
        if n > 3:
            z = np.log(points.params[valley.rows]) - valley.centre
            found.append(np.sqrt(n / (n - 3)) * (points.loss[valley.rows] / np.polyval(valley.parabola, z) - 1))
            spare += n - 3
    return np.concatenate(found), spare


def _drawn_bottoms(
    points: Points, valley: Valley, residuals: Array, spread: Array, generator: np.random.Generator
) -> Array:
    z = np.log(points.params[valley.rows]) - valley.centre
    fitted = np.polyval(valley.parabola, z)
    samples = fitted * (1 + spread[:, None] * generator.choice(residuals, (len(spread), len(z))))
    c2, c1, _ = np.polyfit(z, samples.T, 2)
    bottoms = np.where(c2 > 0, -c1 / (2 * np.where(c2 > 0, c2, 1.0)), np.where(c1 > 0, z.min(), z.max()))
    drawn: Array = np.clip(bottoms, z.min() - 2, z.max() + 2) + valley.centre
    return drawn
