"""Chinchilla's first way (Hoffmann et al. 2022, section 3.1): of all runs' curves the lowest at each budget, and
N = N_0 C^a and D = D_0 C^b through these best sizes.

Shapes: C sizes in ascending order, G budgets, N rows, S draws; of a surface T terms, K sizes between. Sizes, budgets
and losses are logs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from talaria.errors import UserError
from talaria.scaling.allocation import SAME_BUDGET, SAME_SIZE, clusters, held_out, power_laws
from talaria.scaling.fit import Fit, HeldOut
from talaria.scaling.points import Array, Index, Points

Mask = NDArray[np.bool_]

_GRID = 400
_FEWEST_BUDGETS = 4
"""Of the median size, below which a curve says little of where another one crosses it."""
_SMOOTHED_FROM = 6
"""Rows of a size, from which on a cubic goes through them."""
_FEWEST_CURVES = 8
"""Of sizes, below which a surface of squares through their curves is all that leaves something to tell an error by."""
_ENOUGH_CURVES = 12
"""Of sizes, below which intervals were too narrow on planted curves."""
_SIZES_BETWEEN = 20
"""Where the best of the surface is looked for, for each size there is."""
_DRAWS_WITHIN = 50
"""Draws that tell a simulated table's own bias."""
_TOGETHER = 10
"""Draws whose curves lie in the processor's cache."""
_MOST_UNTOLD = 0.1
"""Of the simulated tables, from which on those without a line are spoken of."""
_HELD_OUT_FROM = 0.75
"""The share of the envelope's budgets that predicts the best sizes of the others, the largest."""


def fit_envelope(points: Points, draws: int = 1000, seed: int = 0) -> tuple[Fit, Array]:
    """Power laws through the lower envelope. Returns the fit and the envelope's rows (log C, log N).

    The curve of a size is its rows in order of compute, smoothed by a cubic where there are six or more; rows at one
    budget count as one, by the mean of their log loss. A size with one budget has no curve and is left out.

    The lowest of noisy curves is low by chance, which flattens the line through them. By how much is seen on curves
    whose best sizes are known: those of a surface through all rows, log loss by products of powers of log size and of
    log compute, each curve with its residuals as they are or with all their signs turned (the wild bootstrap of
    clusters; Cameron, Gelbach and Miller 2008), since errors along a curve hang together. What the line through such
    curves is off by in the median is taken off. For `draws` / 2 simulated tables all this is done again, from their own
    surface: how far off the line told is then makes a draw on either side (the double bootstrap, Beran 1987;
    symmetric, Hall 1988). What is held out is predicted without that. Raises UserError where the curves do not
    overlap, or leave nothing to tell an error by.
    """
    n_points, joined = len(points), _one_row_a_budget(points)
    sizes = clusters(np.log(joined.params), SAME_SIZE)
    several = [rows for rows in sizes if len(rows) > 1]
    if len(several) < 3:
        raise UserError(
            f"{len(several)} sizes have rows at two budgets or more; the envelope needs the curves of three sizes"
        )
    points = joined.take(np.concatenate(several))
    log_c, log_n, log_loss = np.log(points.flops), np.log(points.params), np.log(points.loss)
    curves = [rows[np.argsort(log_c[rows])] for rows in clusters(log_n, SAME_SIZE)]
    size = np.array([log_n[rows].mean() for rows in curves])
    grid = np.linspace(log_c.min(), log_c.max(), _GRID)
    losses = _losses(curves, log_c, log_loss, grid)
    found = _envelope(losses, size, grid)
    if found is None:
        raise UserError(
            "at no two budgets is a size the best between a smaller and a larger one; train more sizes over the "
            "same budgets"
        )
    (slope, offset), lines = _lines_told(points, curves, losses, size, grid, found, draws, seed)
    residuals = found[:, 1] - (offset + slope * found[:, 0])
    fit = power_laws("envelope", slope, offset, lines, residuals, n_points, seed)
    fit = replace(fit, held_out=_hold_out(found, curves, log_c, log_loss, size, grid))
    if len(curves) < _ENOUGH_CURVES:
        fit.warnings.append(
            f"{len(curves)} sizes are few to tell an error by: the interval may be too narrow; add sizes"
        )
    if (n_budgets := int(np.median([len(rows) for rows in curves]))) < _FEWEST_BUDGETS:
        fit.warnings.append(
            f"{n_budgets} budgets a size are few for a curve: exponent and interval may be wrong; read the loss at "
            "more budgets"
        )
    if len(curves) < len(sizes):
        fit.warnings.append(
            f"{len(sizes) - len(curves)} of {len(sizes)} sizes have one budget alone: without a curve they are left out"
        )
    if len(lines) < (1 - _MOST_UNTOLD) * draws:
        fit.warnings.append(
            f"{draws - len(lines)} of {draws} draws have their best sizes at the ends of those tried and tell no line: "
            "the interval is that of the others; add smaller or larger sizes over the same budgets"
        )
    if len(np.unique(found[:, 1])) < 4:
        fit.warnings.append(f"only {len(np.unique(found[:, 1]))} sizes are ever the best; add sizes between them")
    return fit, found


def _one_row_a_budget(points: Points) -> Points:
    """Rows of a size at nearly one budget, such as runs that differ in their seeds, as one: means of the logs."""
    log_c, log_n, log_loss = np.log(points.flops), np.log(points.params), np.log(points.loss)
    same, size = [], []
    for rows in clusters(log_n, SAME_SIZE):
        left = rows[np.argsort(log_c[rows])]
        while len(left):
            near = log_c[left] <= log_c[left[0]] + SAME_BUDGET
            same.append(left[near])
            size.append(log_n[rows].mean())
            left = left[~near]
    flops, loss = (np.array([np.exp(of[rows].mean()) for rows in same]) for of in (log_c, log_loss))
    joined = points.take(np.array([rows[0] for rows in same]))
    return replace(joined, params=np.exp(np.array(size)), flops=flops, loss=loss)


def _hold_out(
    found: Array, curves: list[Index], log_c: Array, log_loss: Array, size: Array, grid: Array
) -> HeldOut | None:
    border = np.quantile(found[:, 0], _HELD_OUT_FROM)
    beyond, earlier = found[found[:, 0] > border], grid[grid <= border]
    below = _envelope(_losses(curves, log_c, log_loss, earlier, border), size, earlier)
    if below is None or len(np.unique(below[:, 1])) < 3:
        return None
    predicted = np.polyval(np.polyfit(below[:, 0], below[:, 1], 1), beyond[:, 0])
    return held_out(predicted - beyond[:, 1])


# ------------------------------------------------------------------------------ curves and their envelope


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


def _lines(losses_SCG: Array, size_C: Array, budget_G: Array) -> tuple[Array, Mask, Index]:
    """Slope and height at budget 0 of the line through each envelope, (S, 2), NaN where that has fewer than two sizes;
    at which budgets the best size has a smaller and a larger one to be compared with, (S, G), since at an end of the
    sizes the best lies beyond them; and the best sizes' places, (S, G)."""
    there = np.isfinite(losses_SCG)
    best: Index = np.argmin(losses_SCG, axis=1)
    last = losses_SCG.shape[1] - 1
    compared = (np.argmax(there, axis=1) < best) & (best < last - np.argmax(there[:, ::-1], axis=1))
    several = np.where(compared, best, last).min(axis=1) < np.where(compared, best, 0).max(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        n, y = compared.sum(axis=1, keepdims=True), size_C[best]
        from_mean = np.where(compared, budget_G - compared @ budget_G[:, None] / n, 0.0)
        slope = np.sum(from_mean * y, axis=1) / np.sum(from_mean**2, axis=1)
        height = (np.sum(compared * y, axis=1) - slope * (compared @ budget_G)) / n[:, 0]
    lines = np.where(several[:, None], np.stack([slope, height], axis=1), np.nan)
    return lines, compared, best


def _envelope(losses: Array, size: Array, grid: Array) -> Array | None:
    """(log C, log N) wherever a best size can be compared; None where that is one and the same, or none."""
    (line,), (compared,), (best,) = _lines(losses[None], size, grid)
    return np.stack([grid[compared], size[best[compared]]], axis=1) if np.isfinite(line).all() else None


# ------------------------------------------------------------------------------------- simulated curves


@dataclass(frozen=True)
class _Surface:
    """Log loss by products of powers of log size and of log compute, as all tables of the same sizes and budgets have
    it. `curve_CGT` are its terms smoothed as the curves are; `of_size_KX` and `of_budget_GY` their factors at K sizes
    between and at the budgets, `known_KG` where there are curves on both sides. Budgets are measured from the middle of
    the table's own envelope, where a line's slope and height hardly hang together. Residuals times `widening` are as
    large as errors."""

    size_C: Array
    budget_G: Array
    there_CG: Mask
    curve_CGT: Array
    between_K: Array
    of_size_KX: Array
    of_budget_GY: Array
    known_KG: Mask
    widening: float

    def curves(self, theta_T: Array) -> Array:
        return np.where(self.there_CG, self.curve_CGT @ theta_T, np.inf)

    def errors(self, losses_CG: Array, theta_T: Array) -> Array:
        """Of curves around a surface fitted to them: what fitting took off is added in the mean."""
        return np.where(self.there_CG, self.widening * (losses_CG - self.curve_CGT @ theta_T), 0.0)

    def with_errors(self, theta_T: Array, errors_CG: Array, terms_CT: Array, sign_C: Array) -> tuple[Array, Array]:
        """The curves, and the coefficients fitted to them, of a table whose curves have these errors, each on the side
        of its sign. Smoothing and fitting are linear, so both are sums."""
        return self.curves(theta_T) + sign_C[:, None] * errors_CG, theta_T + sign_C @ terms_CT

    def true_line(self, theta_T: Array, compared_G: Mask) -> Array:
        """Slope and height, (2,), of the line through the sizes that are the surface's best at these budgets; NaN where
        they lie at the ends of those tried, or where there is no budget."""
        if not compared_G.any():
            return np.full(2, np.nan)
        theta_XY = theta_T.reshape(self.of_size_KX.shape[1], -1)
        losses_KG = self.of_size_KX @ theta_XY @ self.of_budget_GY[compared_G].T
        losses_KG[~self.known_KG[:, compared_G]] = np.inf
        lines, _, _ = _lines(losses_KG[None], self.between_K, self.budget_G[compared_G])
        line: Array = lines[0]
        return line

    def told(self, losses_CG: Array, theta_T: Array, signs_SC: Array) -> Array:
        """The line through a table's envelope without its bias, (2,), NaN where it cannot be told."""
        (line,), (compared,), _ = _lines(losses_CG[None], self.size_C, self.budget_G)
        true = self.true_line(theta_T, compared)
        surface, errors = self.curves(theta_T), self.errors(losses_CG, theta_T)
        parts = np.array_split(signs_SC, -(-len(signs_SC) // _TOGETHER))
        lines = np.concatenate(
            [_lines(surface + part[:, :, None] * errors, self.size_C, self.budget_G)[0] for part in parts]
        )
        lines = lines[np.isfinite(lines[:, 0])]
        if len(lines) < len(signs_SC) / 2:
            return np.full(2, np.nan)
        told: Array = line + true - np.median(lines, axis=0)
        return told


def _surface(
    points: Points, curves: list[Index], there_CG: Mask, size: Array, grid: Array, middle: float
) -> tuple[_Surface, Array]:
    """The surface's shape, and its terms at each row, (N, T)."""
    few_rows = int(np.median([len(rows) for rows in curves])) - 1
    highest = 3 if len(curves) >= _FEWEST_CURVES else 2, min(3, few_rows)

    def of_size(x: Array) -> Array:
        return _powers(x, size, highest[0])

    def of_budget(z: Array) -> Array:
        return _powers(z, grid, highest[1])

    log_c, log_n = np.log(points.flops), np.log(points.params)
    design_NT = (of_size(log_n)[:, :, None] * of_budget(log_c)[:, None, :]).reshape(len(points), -1)
    # Of a curve's errors the envelope sees no more than its cubic does, and of that the surface takes its share.
    seen = sum(len(rows) if len(rows) < _SMOOTHED_FROM else 4 for rows in curves)
    spare = seen - design_NT.shape[1]
    if spare < 1:
        raise UserError(
            f"{len(points)} rows leave nothing to tell an error of the envelope by; give more rows a size, or more "
            "sizes"
        )
    # The surface is known where there are curves: between the smallest and the largest that a budget has.
    smallest, largest = size[np.argmax(there_CG, axis=0)], size[len(size) - 1 - np.argmax(there_CG[::-1], axis=0)]
    between = np.linspace(size[0], size[-1], _SIZES_BETWEEN * len(size))
    smoothed = [_losses(curves, log_c, term, grid) for term in design_NT.T]
    surface = _Surface(
        size_C=size,
        budget_G=grid - middle,
        there_CG=there_CG,
        curve_CGT=np.where(there_CG[:, :, None], np.stack(smoothed, axis=-1), 0.0),
        between_K=between,
        of_size_KX=of_size(between),
        of_budget_GY=of_budget(grid),
        known_KG=(smallest <= between[:, None]) & (between[:, None] <= largest),
        widening=float(np.sqrt(seen / spare)),
    )
    return surface, design_NT


def _lines_told(
    points: Points, curves: list[Index], losses_CG: Array, size: Array, grid: Array, found: Array, draws: int, seed: int
) -> tuple[Array, Array]:
    """Slope and offset of the line without its bias, (2,), and of its draws, (S, 2)."""
    middle = float(found[:, 0].mean())
    surface, design_NT = _surface(points, curves, np.isfinite(losses_CG), size, grid, middle)
    cutoff = np.finfo(np.float64).eps * max(design_NT.shape)  # as lstsq has it: numpy's own lets null terms through
    rows_to_terms = np.asarray(np.linalg.pinv(design_NT, rcond=cutoff), dtype=np.float64)
    log_loss = np.log(points.loss)
    theta: Array = rows_to_terms @ log_loss
    generator = np.random.default_rng(seed)

    def signs(n: int) -> Array:
        return generator.choice([-1.0, 1.0], (n, len(curves)))

    line = surface.told(losses_CG, theta, signs(draws))
    # What is asked for is the exponent at the real table's budgets, whichever budgets another table's envelope has.
    true = surface.true_line(theta, np.isin(grid, found[:, 0]))
    errors_CG = surface.errors(losses_CG, theta)
    row_errors = surface.widening * (log_loss - design_NT @ theta)
    terms_CT = np.stack([rows_to_terms[:, rows] @ row_errors[rows] for rows in curves])
    off = np.empty(((draws + 1) // 2, 2))
    for draw, sign_C in enumerate(signs(len(off))):
        table = surface.with_errors(theta, errors_CG, terms_CT, sign_C)
        off[draw] = surface.told(*table, signs(_DRAWS_WITHIN)) - true
    off = off[np.isfinite(off[:, 0])]
    if len(off) < draws / 4 or not np.isfinite(line).all():
        raise UserError(
            "smoothed over all rows, the best sizes lie at the ends of those tried, so that there is no interval; add "
            "smaller or larger sizes over the same budgets"
        )
    lines = np.concatenate([[line], line + off, line - off])
    lines[:, 1] -= lines[:, 0] * middle
    return lines[0], lines[1:]


def _powers(values: Array, of: Array, highest: int) -> Array:
    """Of `values` on a scale on which `of` reaches from about -1 to 1, (..., highest + 1)."""
    scaled = 2 * (values - of.mean()) / np.ptp(of)
    return np.stack([scaled**power for power in range(highest + 1)], axis=-1)
