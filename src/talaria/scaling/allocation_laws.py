"""Chinchilla's first two ways: which size is best for a compute budget, straight from the runs, without a law of the
loss.

Envelope (Hoffmann et al. 2022, section 3.1): of all runs' curves, the lowest loss at each budget. IsoFLOP (section
3.2): for each budget a parabola of loss over log N, whose bottom is the best size. Either gives pairs of budget and
size, through which N = N_0 C^a and D = D_0 C^b go.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from talaria.errors import UserError
from talaria.scaling.fit import Fit, HeldOut
from talaria.scaling.points import FLOPS_PER_PARAMETER_AND_TOKEN, Array, Index, Points

_SAME_SIZE = 0.01
"""Sizes whose logs differ by less are one size, read from its curve more than once."""
_SAME_BUDGET = 0.05
"""Budgets whose logs differ by less from the next are one budget."""
_FEWEST_SIZES = 5
"""Of a budget, below which its parabola leaves one residual or none to tell its own error by."""
_GRID = 400
_SMOOTHED_FROM = 6
"""Rows of a size, from which on a cubic goes through them."""
_FEWEST_CURVES = 8
"""Of sizes, below which a surface through their curves leaves little to tell an error by."""
_SIZES_BETWEEN = 20
"""Where the best of the surface is looked for, for each size there is."""
_HELD_OUT_FROM = 0.75
"""The share of the envelope's budgets that predicts the best sizes of the others, the largest."""


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
    valleys = [valley for rows in _groups(np.log(points.flops), _SAME_BUDGET) if (valley := _valley(points, rows))]
    inside = [valley for valley in valleys if valley.is_inside]
    if len(inside) < 2:
        raise UserError(
            f"{len(inside)} of {len(valleys)} budgets have a best size between their smallest and largest (3 sizes "
            "or more a budget are needed); give two budgets or more, with sizes on both sides of the best"
        )
    residuals, spare = _pooled(points, inside)
    if spare == 0:
        raise UserError(
            "every budget has three rows, through which a parabola goes whatever their errors: there is no interval; "
            "add a fourth size, better five"
        )
    generator = np.random.default_rng(seed)
    # The residuals' own spread is known from `spare` of them alone, so each draw has one of its own (Student's t).
    spread = np.sqrt(spare / generator.chisquare(spare, draws))
    bottoms = np.stack([_drawn_bottoms(points, valley, residuals, spread, generator) for valley in inside], axis=1)
    log_c, log_n = np.log([valley.flops for valley in inside]), np.log([valley.best for valley in inside])
    fit = _power_laws("isoflop", log_c, log_n, bottoms, len(points), seed)
    if len(inside) > 3:
        lines = np.polyfit(log_c[:-1], bottoms[:, :-1].T, 1).T
        off = np.polyval(lines.T, log_c[-1]) - bottoms[:, -1]
        error = np.polyval(np.polyfit(log_c[:-1], log_n[:-1], 1), log_c[-1]) - log_n[-1]
        low, high = np.quantile(off - off.mean(), [0.05, 0.95])
        fit = replace(fit, held_out=_held_out(np.array([error]), int(low <= error <= high)))
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


def fit_envelope(points: Points, draws: int = 1000, seed: int = 0) -> tuple[Fit, Array]:
    """Power laws through the lower envelope. Returns the fit and the envelope's rows (log C, log N).

    The curve of a size is its rows in order of compute, smoothed by a cubic where there are six or more; a size with
    one row has no curve and counts at its own budget alone.

    The lowest of noisy curves is low by chance, which flattens the line through them. By how much is seen on curves
    whose best sizes are known: those of a surface through all rows, log loss by products of powers of log size and of
    log compute, each curve with its residuals as they are or with all their signs turned (the wild bootstrap of
    clusters; Cameron, Gelbach and Miller 2008), since errors along a curve hang together. What the line through such
    curves is off by in the median is taken off the coefficients, and its spread is their interval; what is held out
    is predicted without that. Raises UserError where the curves do not overlap, or leave nothing to tell an error by.
    """
    log_c, log_n, log_loss = np.log(points.flops), np.log(points.params), np.log(points.loss)
    sizes = _groups(log_n, _SAME_SIZE)
    curves = [rows[np.argsort(log_c[rows])] for rows in sizes]
    if sum(len(rows) > 1 for rows in curves) < 3:
        raise UserError(
            f"{sum(len(rows) > 1 for rows in curves)} sizes have two rows or more; the envelope needs the curves of "
            "three sizes"
        )
    grid = np.linspace(log_c.min(), log_c.max(), _GRID)
    losses = _losses(curves, log_c, log_loss, grid)
    size = np.array([log_n[rows].mean() for rows in curves])
    found = _envelope(losses, size, grid)
    if found is None:
        raise UserError(
            "at no two budgets is a size the best between a smaller and a larger one; train more sizes over the "
            "same budgets"
        )
    # Lines by their slope and their height in the middle of the budgets: there the two hardly hang together.
    middle = found[:, 0].mean()
    simulated, known = _lines_through_simulated(points, curves, size, grid, found[:, 0], draws, seed)
    slopes, heights = (np.polyfit(found[:, 0] - middle, found[:, 1], 1) + known - simulated).T
    slope, offset = np.median(slopes), np.median(heights) - np.median(slopes) * middle
    residuals = found[:, 1] - (offset + slope * found[:, 0])
    fit = _told(
        "envelope", slope, offset, np.stack([slopes, heights - slopes * middle], axis=1), residuals, len(points), seed
    )
    border = np.quantile(found[:, 0], _HELD_OUT_FROM)
    beyond, earlier = found[found[:, 0] > border], grid[grid <= border]
    below = _envelope(_losses(curves, log_c, log_loss, earlier, border), size, earlier)
    if below is not None and len(np.unique(below[:, 1])) > 2:
        predicted = np.polyval(np.polyfit(below[:, 0], below[:, 1], 1), beyond[:, 0])
        fit = replace(fit, held_out=_held_out(predicted - beyond[:, 1]))
    if len(curves) < _FEWEST_CURVES:
        fit.warnings.append(
            f"{len(curves)} sizes are few to tell an error by: the interval may be too narrow; add sizes"
        )
    if len(np.unique(found[:, 1])) < 4:
        fit.warnings.append(f"only {len(np.unique(found[:, 1]))} sizes are ever the best; add sizes between them")
    return fit, found


def _lines_through_simulated(
    points: Points, curves: list[Index], size: Array, grid: Array, budgets: Array, draws: int, seed: int
) -> tuple[Array, Array]:
    """Slope and height in the middle of `budgets` of the lines through the envelopes of simulated curves, (draws, 2),
    and of the line through the sizes that are the best of the surface they were simulated from, (2,)."""
    log_c, log_n, log_loss = np.log(points.flops), np.log(points.params), np.log(points.loss)
    few_rows = int(np.median([len(rows) for rows in curves])) - 1
    powers = (3 if len(curves) >= _FEWEST_CURVES else 2, min(3, few_rows))

    def terms(x: Array, z: Array) -> Array:
        """Products of the powers of both, (..., terms)."""
        x, z = (2 * (v - of.mean()) / np.ptp(of) for v, of in ((x, size), (z, grid)))
        each = [np.stack([v**i for i in range(top + 1)], axis=-1) for v, top in ((x, powers[0]), (z, powers[1]))]
        products: Array = each[0][..., :, None] * each[1][..., None, :]
        return products.reshape(*x.shape, -1)

    design = terms(log_n, log_c)
    # Of a curve's errors the envelope sees no more than its cubic does, and of that the surface takes its share.
    seen = sum(len(rows) if len(rows) < _SMOOTHED_FROM else 4 for rows in curves)
    spare = seen - design.shape[1]
    if spare < 1:
        raise UserError(
            f"{len(points)} rows leave nothing to tell an error of the envelope by; give more rows a size, or more "
            "sizes"
        )
    surface = np.linalg.lstsq(design, log_loss, rcond=None)[0]
    errors = (log_loss - design @ surface) * np.sqrt(seen / spare)
    # Smoothing is linear, so curves with errors are smooth ones and their errors, smoothed.
    smooth, off = (_losses(curves, log_c, values, grid) for values in (design @ surface, errors))
    there = np.isfinite(smooth)
    off[~there] = 0
    # The surface is known where there are curves: between the smallest and the largest that a budget has.
    there = there[:, np.searchsorted(grid, budgets)]
    smallest, largest = size[np.argmax(there, axis=0)], size[len(size) - 1 - np.argmax(there[::-1], axis=0)]
    between = np.linspace(size[0], size[-1], _SIZES_BETWEEN * len(size))
    losses = terms(*np.meshgrid(between, budgets, indexing="ij")) @ surface
    losses[(between[:, None] < smallest) | (between[:, None] > largest)] = np.inf
    best = between[np.argmin(losses, axis=0)]
    step = between[1] - between[0]
    inside = (best > smallest + step) & (best < largest - step)
    middle = budgets.mean()
    generator, lines = np.random.default_rng(seed), []
    for _ in range(draws):
        signs = generator.choice([-1.0, 1.0], (len(curves), 1))
        if (one := _envelope(smooth + signs * off, size, grid)) is not None:
            lines.append(np.polyfit(one[:, 0] - middle, one[:, 1], 1))
    if len(lines) < draws / 2 or inside.sum() < 2:
        raise UserError(
            "smoothed over all rows, the best sizes lie at the ends of those tried, so that there is no interval; add "
            "smaller or larger sizes over the same budgets"
        )
    return np.array(lines), np.polyfit(budgets[inside] - middle, best[inside], 1)


def _losses(curves: list[Index], log_c: Array, log_loss: Array, grid: Array, until: float = np.inf) -> Array:
    """Log loss of each size (rows) at each budget of `grid`, from its rows of at most `until` alone; infinite where it
    has no curve."""
    losses = np.full((len(curves), len(grid)), np.inf)
    for place, whole in enumerate(curves):
        rows = whole[log_c[whole] <= until]
        if len(rows) > 0:
            inside = (grid >= log_c[rows[0]]) & (grid <= log_c[rows[-1]])
            losses[place, inside] = _curve(grid[inside], log_c[rows], log_loss[rows])
    return losses


def _curve(grid: Array, log_c: Array, log_loss: Array) -> Array:
    """One size's log loss at the budgets of `grid`: a cubic through six rows or more, else lines between them. The
    lowest of noisy curves is low by chance, which pulls the best size towards the middle of the sizes."""
    if len(log_c) < _SMOOTHED_FROM:
        return np.interp(grid, log_c, log_loss)
    centre, half = (log_c[0] + log_c[-1]) / 2, (log_c[-1] - log_c[0]) / 2
    smooth: Array = np.polyval(np.polyfit((log_c - centre) / half, log_loss, 3), (grid - centre) / half)
    return smooth


def _envelope(losses: Array, sizes: Array, grid: Array) -> Array | None:
    """(log C, log N) wherever the best of the ascending `sizes` has a smaller and a larger one to be compared with:
    at an end of the sizes the best lies beyond them."""
    there = np.isfinite(losses)
    best = np.argmin(losses, axis=0)
    smallest, largest = np.argmax(there, axis=0), len(sizes) - 1 - np.argmax(there[::-1], axis=0)
    compared = (smallest < best) & (best < largest)
    if len(np.unique(best[compared])) < 2:
        return None
    return np.stack([grid[compared], sizes[best[compared]]], axis=1)


def _groups(values: Array, tolerance: float) -> list[Index]:
    """Indices of values that lie within `tolerance` of the next, in ascending order."""
    order = np.argsort(values)
    cuts = np.flatnonzero(np.diff(values[order]) > tolerance) + 1
    return list(np.split(order, cuts))


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
    return len(_groups(np.log(points.params[rows]), _SAME_SIZE))


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


def _power_laws(law: str, log_c: Array, log_n: Array, drawn: Array, n_points: int, seed: int) -> Fit:
    slope, offset = np.polyfit(log_c, log_n, 1)
    return _told(law, slope, offset, np.polyfit(log_c, drawn.T, 1).T, log_n - (offset + slope * log_c), n_points, seed)


def _told(law: str, slope: float, offset: float, lines: Array, residuals: Array, n_points: int, seed: int) -> Fit:
    """Coefficients of N = N_0 C^a and, by C = 6 N D, of D = D_0 C^b; `lines` are the draws' slopes and offsets."""
    coefficients = {name: float(values[0]) for name, values in _both(np.array([[slope, offset]])).items()}
    draws = _both(lines)
    return Fit(
        law=law,
        coefficients=coefficients,
        draws=draws,
        exponents={"parameters": coefficients["a"], "tokens": coefficients["b"]},
        exponent_draws={"parameters": draws["a"], "tokens": draws["b"]},
        residuals=residuals,
        n_points=n_points,
        seed=seed,
    )


def _held_out(errors_B: Array, inside: int | None = None) -> HeldOut:
    """From errors of log size, predicted less found, at the held-out budgets."""
    relative_B = np.abs(np.expm1(errors_B))
    return HeldOut(len(errors_B), float(relative_B.mean()), float(relative_B.max()), inside)


def _both(lines: Array) -> dict[str, Array]:
    a, n_0 = lines[:, 0], np.exp(lines[:, 1])
    return {"N_0": n_0, "a": a, "D_0": 1 / (FLOPS_PER_PARAMETER_AND_TOKEN * n_0), "b": 1 - a}
