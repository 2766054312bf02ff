"""Robust curves through many tables at once: Levenberg-Marquardt on Huber's loss, one problem a row of a batch.

Every start of one fit, every draw of a bootstrap and every left-out point is a row, so that a thousand fits are some
hundred matrix products instead of a thousand calls of an optimiser.

Shapes: B problems, P parameters, N points.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Model = Callable[[Array], tuple[Array, Array]]
"""theta_BP to predictions_BN and their derivatives_BPN."""

HUBER_DELTA = 1e-3
"""Of residuals of the log-loss: Hoffmann et al. 2022, section 3.3, and Besiroglu et al. 2024."""
_CHUNK = 64
"""Problems solved together: their derivatives stay in the cache."""


def huber(residuals: Array, delta: float = HUBER_DELTA) -> Array:
    """r^2 / 2 up to delta, delta (|r| - delta / 2) beyond (Huber 1964)."""
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * size * size, delta * (size - 0.5 * delta))


def minimise(
    model: Model,
    theta_BP: Array,
    target: Array,
    counts_BN: Array | None = None,
    iterations: int = 200,
    tolerance: float = 1e-10,
    delta: float = HUBER_DELTA,
) -> tuple[Array, Array]:
    """Minimise sum of counts x huber(prediction - target) from every row of `theta_BP`; return parameters and
    objectives_B.

    `target` is one for all (N) or one for each problem (B, N). `counts_BN` weighs the points of each problem (0
    leaves a point out). A problem rests once a step lowers its objective by less than
    `tolerance` of it three times in a row. An objective never rises; where a start has no finite prediction it stays
    as it is, with objective infinity.
    """
    found, objectives = np.array(theta_BP, dtype=np.float64), np.empty(len(theta_BP))
    targets_BN = np.broadcast_to(target, (len(found), target.shape[-1]))
    for first in range(0, len(found), _CHUNK):
        part = slice(first, first + _CHUNK)
        counts = None if counts_BN is None else counts_BN[part]
        found[part], objectives[part] = _solve(
            model, found[part], targets_BN[part], counts, iterations, tolerance, delta
        )
    return found, objectives


def _solve(
    model: Model,
    theta: Array,
    target: Array,
    counts: Array | None,
    iterations: int,
    tolerance: float,
    delta: float,
) -> tuple[Array, Array]:
    theta = theta.copy()
    counts = np.ones(target.shape) if counts is None else counts
    residuals, slopes, objective = _look(model, theta, target, counts, delta)
    damping = np.full(len(theta), 1e-2)
    rested = np.zeros(len(theta), dtype=np.int64)
    active = np.flatnonzero(np.isfinite(objective))
    for _ in range(iterations):
        if not len(active):
            break
        r, J, c = residuals[active], slopes[active], counts[active]
        # Huber's loss lies below the parabola of these weights and touches it at r (iteratively reweighted least
        # squares).
        weights = c * (delta / np.maximum(np.abs(r), delta))
        JW = J * weights[:, None, :]
        gradient = np.matmul(JW, r[:, :, None])
        normal = np.matmul(JW, J.transpose(0, 2, 1))
        diagonal = np.einsum("bpp->bp", normal)
        lift = damping[active, None] * diagonal + 1e-12 * np.maximum(diagonal.max(1, keepdims=True), 1e-300)
        normal[:, np.arange(J.shape[1]), np.arange(J.shape[1])] += lift
        trial = theta[active] - np.linalg.solve(normal, gradient)[:, :, 0]
        new_r, new_J, new_objective = _look(model, trial, target[active], c, delta)
        gain = objective[active] - new_objective
        better = gain > 0
        small = gain <= tolerance * objective[active]
        kept = active[better]
        theta[kept], residuals[kept], slopes[kept] = trial[better], new_r[better], new_J[better]
        objective[kept] = new_objective[better]
        damping[active] = np.clip(np.where(better, damping[active] / 4, damping[active] * 6), 1e-12, 1e12)
        rested[active] = np.where(small & (better | (damping[active] > 1e6)), rested[active] + 1, 0)
        active = active[(rested[active] < 3) & (damping[active] < 1e11)]
    return theta, objective


def _look(model: Model, theta: Array, target: Array, counts: Array, delta: float) -> tuple[Array, Array, Array]:
    with np.errstate(all="ignore"):  # a trial step may leave the numbers' range: its objective is then infinite
        predictions, slopes = model(theta)
        residuals = predictions - target
        objective = np.sum(counts * huber(residuals, delta), axis=1)
    wrong = ~(np.isfinite(objective) & np.isfinite(slopes).all(axis=(1, 2)))
    objective[wrong] = np.inf
    residuals[wrong], slopes[wrong] = 0.0, 0.0
    return residuals, slopes, objective


def minimise_from_grid(model: Model, starts_BP: Array, target_N: Array) -> tuple[Array, float]:
    """The best minimum from many starts: all take some steps, the better part goes on, down to a few that are finished.

    Returns parameters_P and their objective.
    """
    theta = starts_BP
    for iterations, kept in ((4, 600), (10, 120), (30, 24), (120, 4)):
        theta, objectives = minimise(model, theta, target_N, iterations=iterations)
        theta = theta[np.argsort(objectives)[:kept]]
    theta, objectives = minimise(model, theta, target_N, iterations=3000, tolerance=1e-14)
    best = int(np.argmin(objectives))
    return theta[best], float(objectives[best])
