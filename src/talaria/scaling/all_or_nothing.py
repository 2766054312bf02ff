"""Success in n steps that must all be right: p^n, with p rising smoothly in the log of scale (Wei et al. 2022;
Schaeffer et al. 2023, section 2). A sharp curve of exact matches is then no jump: it is many steps.

    steps = fit_steps(x, score, n)       # x = log2 scale, share of exact matches, items behind it
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from talaria.scaling.points import Array

_STEPS = np.array([1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 30], dtype=np.float64)


@dataclass(frozen=True)
class Steps:
    """How many steps the curve looks like, with an 80 % interval, how well p^n fits (p-value of its deviance), and the
    score at the next scale with its 80 % interval."""

    steps: float
    low: float
    high: float
    p_fit: float
    next_score: tuple[float, float, float]


def fit_steps(x: Array, score: Array, n: Array, ahead: float) -> Steps:
    """Posterior of the number of steps (flat over the listed numbers, the log rate and the midpoint), binomial
    likelihood.

    For each number of steps a grid over rate and midpoint is drawn in to where the likelihood is, however many items
    there are.
    """
    grids = [_posterior(x, score, n, ahead, steps) for steps in _STEPS]
    top = max(float(log_mass.max()) for log_mass, _, _ in grids)
    mass = np.concatenate([np.exp(log_mass - top) for log_mass, _, _ in grids])
    mass /= mass.sum()
    of_steps = mass.reshape(len(_STEPS), -1).sum(axis=1)
    low, middle, high = _quantiles(_STEPS, of_steps)
    ahead_low, ahead_middle, ahead_high = _quantiles(np.concatenate([scores for _, scores, _ in grids]), mass)
    best = grids[int(np.argmax([likelihood.max() for _, _, (likelihood, _) in grids]))][2]
    fitted = np.clip(best[1][int(np.argmax(best[0]))], 1e-9, 1 - 1e-9)
    chi_squared = float((n * (score - fitted) ** 2 / (fitted * (1 - fitted))).sum())
    tail = _chi_squared_tail(chi_squared, max(1, len(x) - 3))
    return Steps(middle, low, high, tail, (ahead_middle, ahead_low, ahead_high))


def _posterior(
    x: Array, score: Array, n: Array, ahead: float, steps: float
) -> tuple[Array, Array, tuple[Array, Array]]:
    """Log mass of each grid cell, its score at the next scale, and (log-likelihoods, fitted scores)."""
    rates = np.log([0.05, 4.0])
    middles = np.array([x[0] - 8, x[-1] + 4])
    for _ in range(8):
        rate, middle = (
            grid.ravel()
            for grid in np.meshgrid(np.linspace(rates[0], rates[1], 21), np.linspace(middles[0], middles[1], 41))
        )
        logits = np.exp(rate)[:, None] * (np.append(x, ahead) - middle[:, None])
        log_success = np.minimum(-steps * np.logaddexp(0.0, -logits), -1e-12)
        success = np.exp(log_success)
        wrong = np.log1p(-np.minimum(success[:, :-1], 1 - 1e-12))
        likelihood = (score * n * log_success[:, :-1] + (1 - score) * n * wrong).sum(axis=1)
        near = likelihood > likelihood.max() - 10
        inner = [np.array([values[near].min(), values[near].max()]) for values in (rate, middle)]
        cell = [np.ptp(edges) / count for edges, count in ((rates, 20), (middles, 40))]
        drawn = [np.array([edges[0] - step, edges[1] + step]) for edges, step in zip(inner, cell, strict=True)]
        if all(np.ptp(new) > 0.7 * np.ptp(old) for new, old in zip(drawn, (rates, middles), strict=True)):
            break
        rates, middles = drawn
    area = math.log(cell[0] * cell[1])
    return likelihood + area, success[:, -1], (likelihood, success[:, :-1])


def _quantiles(values: Array, mass: Array) -> tuple[float, float, float]:
    """The 10, 50 and 90 % points of a weighed sample."""
    order = np.argsort(values)
    places = np.searchsorted(np.cumsum(mass[order]), [0.1, 0.5, 0.9])
    low, middle, high = values[order][np.minimum(places, len(values) - 1)]
    return float(low), float(middle), float(high)


def steps_between(part: Array, whole: Array, n: Array) -> float | None:
    """n by which whole = part^n, from a measured share of right steps and of right answers; None where neither
    moves."""
    use = (part > 0) & (part < 1) & (whole > 0) & (whole < 1)
    if use.sum() < 2:
        return None
    # Weighed by the information that a share of `whole` has of its own log.
    weights = n[use] * whole[use] / (1 - whole[use])
    log_part, log_whole = np.log(part[use]), np.log(whole[use])
    return float((weights * log_part * log_whole).sum() / (weights * log_part**2).sum())


def _chi_squared_tail(value: float, degrees: int) -> float:
    """P(chi-squared > value), by the finite sums of Abramowitz and Stegun 26.4.4 and 26.4.5."""
    half = value / 2
    if degrees % 2 == 0:
        term = total = 1.0
        for k in range(1, degrees // 2):
            term *= half / k
            total += term
        return math.exp(-half) * total
    total = 0.0
    term = math.sqrt(value)
    for k in range(1, (degrees - 1) // 2 + 1):
        total += term
        term *= value / (2 * k + 1)
    return math.erfc(math.sqrt(half)) + math.sqrt(2 / math.pi) * math.exp(-half) * total
