"""Small runs along one ray, model and text grown in proportion, and the loss of a larger run farther along it.

    prediction = predict_along(sizes, losses, target=853_376, level=0.8, seed=0)

On such a ray Chinchilla's two terms are powers of the same size n, so that one power law with a floor carries them,
L = E + A n^-gamma (Hoffmann et al. 2022, equation 2, with D = r N). Few rungs cannot tell E, A and gamma apart, and one
best fit with the draws around it pretends that they can. Here every floor from 0 to the least loss and every exponent
is weighed by how well it passes through the rungs; the prediction is the mixture of them all, so that what the rungs
leave open is in the interval. What final losses leave open, early ones may tell: on the ray the curves of all sizes are
nearly one, but for their distance to the same floor (Qiu et al. 2025), and early in a run that distance is large.

Nor is the law the truth: a small model is often in another part of learning than a large one. So log loss may drift
away from it as an integrated random walk does (a law with a discrepancy, Kennedy and O'Hagan 2001; the walk is that of
smoothing splines, Wahba 1978): its slope over log size changes by some kappa from one e-fold of size to the next. Rungs
that bend otherwise than the law does say that kappa is large, and then the error grows as the distance to the power of
three halves, in the direction in which they bend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from talaria.errors import UserError
from talaria.scaling.points import Array

_GAMMAS = np.geomspace(0.02, 1.5, 60)
_GAMMA, _GAMMA_SPREAD = 0.3, 0.7
"""Log-normal weight of the exponents of the model's size before the rungs are seen: that of laws with a floor is
published as 0.34 to 0.37 (Hoffmann et al. 2022, Besiroglu et al. 2024), ladders of minutes had 0.14 to 2. With all
exponents alike, a ladder of a development seed whose two largest sizes happened to lie close took that for a floor just
below them, and predicted 6 % too much."""
_EDGES = 1 - np.concatenate([np.linspace(1.0, 0.1, 55), np.geomspace(0.1, 0.0005, 31)[1:], [0.0]])
_FLOORS, _FLOOR_WEIGHTS = (_EDGES[1:] + _EDGES[:-1]) / 2, np.diff(_EDGES)
"""As shares of the least loss; narrower near 1, where a text that is nearly learned has its floor."""
_EARLY, _EARLY_SPREAD = 0.75, 0.15
"""Log-normal: the exponent of early losses over that of final ones. 1 where curves of all sizes are one curve but for a
factor (Qiu et al. 2025); in ladders whose run was known about 0.7 on four texts of worlds, 0.93 on poems."""
_KAPPAS = np.array([0.0, *np.geomspace(0.003, 0.3, 10)])
_HOLDS, _HOLDS_WITH_EARLY = 0.5, 0.7
"""How likely the law is to hold before the rungs are seen, more where early losses tell its floor; else it is off by
half a per cent after two e-folds of size, or its slope is forgotten within them, or anything between."""
_PRIOR_ROWS = 2
"""Seeds tell the least scatter about the law; so many rungs' worth is that word."""
_LEAST_SCATTER = 1e-4
"""Of log loss between seeds, so that runs which agree to the last digit do not count as free of noise. With ten times
as much, ladders whose seeds agree to 0.03 % could not see that their law bends, and held the wrong ones for certain."""
_SCATTER_THAT_TELLS = 0.003
"""Of log loss: a setting that does not carry over moves a size by more."""
_FALL_THAT_IS_NEW = 0.15
"""Of the loss, from the largest rung to the run: ladders that predicted more missed, or had half-widths of 12 % and
more; those that were of use predicted 9 % at most (docs/results.md)."""
_DRAWS = 20_000
_FEWEST_SIZES = 4


@dataclass(frozen=True)
class RayPrediction:
    """Nats a token of the larger run, with the interval that should hold it at `level`. `floor`, `gamma` and `kappa`
    are (10 %, 50 %, 90 %) of the laws that the rungs admit; `seed_noise` is the standard deviation of log loss between
    seeds, `scatter` that of the sizes' mean log losses about the best law without drift. `at` is the law's median and
    interval, drift included, without a run's own noise: rows of (size, low, median, high)."""

    value: float
    low: float
    high: float
    level: float
    floor: tuple[float, float, float]
    gamma: tuple[float, float, float]
    kappa: tuple[float, float, float]
    seed_noise: float
    scatter: float
    at: list[tuple[float, float, float, float]]
    warnings: list[str]


def predict_along(
    sizes: Sequence[float],
    losses: Sequence[float],
    target: float,
    level: float = 0.8,
    seed: int = 0,
    early: Sequence[float] | None = None,
) -> RayPrediction:
    """The loss at size `target` from runs of `sizes`, each size as often as it has seeds. `early` are the losses that
    the same runs had on new text at one share of their lengths, where they are known.

    Raises UserError for fewer than four sizes, or none that was run twice: nothing would tell the noise of a run.
    """
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    size, group = np.unique(x, return_inverse=True)
    count = np.bincount(group).astype(np.float64)
    if len(size) < _FEWEST_SIZES or len(x) == len(size):
        raise UserError(
            f"{len(x)} runs of {len(size)} sizes: a prediction needs {_FEWEST_SIZES} sizes or more, some of them run "
            "with two seeds"
        )
    mean = np.bincount(group, y) / count
    if np.polyfit(np.log(size), mean, 1)[0] >= 0:
        raise UserError("the loss does not fall with the size of the runs: no law carries a prediction")
    within = np.log(y) - (np.bincount(group, np.log(y)) / count)[group]
    seed_noise = max(float(np.sqrt(np.sum(within**2) / (len(x) - len(size)))), _LEAST_SCATTER)
    generator = np.random.default_rng(seed)
    early_N = None if early is None else np.bincount(group, np.asarray(early, dtype=np.float64)) / count
    log_prior_FG = _log_prior(np.log(size), early_N, float(mean.min()))
    holds = _HOLDS if early is None else _HOLDS_WITH_EARLY
    laws = _weigh(np.log(size), mean, count, seed_noise**2 / float(count.mean()), log_prior_FG, holds, generator)
    # One run scatters about the law as a mean of sizes does, and by what averaging took from its seeds' noise.
    own = laws.variances + seed_noise**2 * (1 - 1 / float(count.mean()))
    reached = laws.at(target, generator) * np.exp(np.sqrt(own) * generator.standard_normal(_DRAWS))
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = (float(end) for end in np.quantile(reached, tails))
    at = []
    for n in np.geomspace(size[0], target, 25):
        ends = np.quantile(laws.at(float(n), generator), [tails[0], 0.5, tails[1]])
        at.append((float(n), float(ends[0]), float(ends[1]), float(ends[2])))
    fall = 1 - float(np.median(reached)) / float(mean[-1])
    warnings = _warnings(size, mean, count, seed_noise, laws.scatter, fall)
    return RayPrediction(
        value=float(np.median(reached)),
        low=low,
        high=high,
        level=level,
        floor=_three(laws.floors),
        gamma=_three(laws.gammas),
        kappa=_three(_KAPPAS[laws.drifts]),
        seed_noise=seed_noise,
        scatter=laws.scatter,
        at=at,
        warnings=warnings,
    )


@dataclass(frozen=True)
class _Laws:
    """Draws S of floor, exponent, height at the centre, drift (its place in _KAPPAS) and variance of log loss, with the
    residuals of the N sizes about each law, as shares of the loss."""

    log_size: Array
    floors: Array
    gammas: Array
    heights: Array
    drifts: NDArray[np.intp]
    variances: Array
    residuals_SN: Array
    ratios: Array
    """Variance of the drift over an e-fold, in variances of the sizes' means, for each of _KAPPAS."""
    precisions_KNN: Array
    scatter: float
    """Standard deviation of the sizes about the best law without drift."""

    def at(self, n: float, generator: np.random.Generator) -> Array:
        """Losses of size `n` by each law, with its drift from the rungs on."""
        x = np.log(n)
        law: Array = self.floors + self.heights * np.exp(-self.gammas * (x - self.log_size.mean()))
        across_N, own = _walk(self.log_size - self.log_size[0], x - self.log_size[0]), (x - self.log_size[0]) ** 3 / 3
        weights_KN = self.ratios[:, None] * (self.precisions_KNN @ across_N)
        left_K = self.ratios * (own - weights_KN @ across_N)
        drift = np.sum(self.residuals_SN * weights_KN[self.drifts], axis=1)
        spread = np.sqrt(self.variances * np.maximum(left_K, 0.0)[self.drifts])
        moved: Array = law * np.exp(drift + spread * generator.standard_normal(len(law)))
        return moved


def _walk(s: Array, t: Array | float) -> Array:
    """Covariance of an integrated random walk that begins at 0, level and slope 0 there, of one unit an e-fold."""
    near, far = np.minimum(s, t), np.maximum(s, t)
    covariance: Array = near**2 * (3 * far - near) / 6
    return covariance


def _log_prior(log_size: Array, early: Array | None, least: float) -> Array:
    """Log weights of F floors, shares of the least final loss, by G exponents, before the N sizes' final losses are
    seen: flat over floors, log-normal over exponents; and, where the sizes' mean early losses are known, by the
    exponent with which these near each floor, `_EARLY` times that of the final ones. Early losses that do not fall with
    size above every floor tell nothing."""
    log_prior_FG: Array = np.log(_FLOOR_WEIGHTS)[:, None] - 0.5 * (np.log(_GAMMAS / _GAMMA) / _GAMMA_SPREAD) ** 2
    if early is None:
        return log_prior_FG
    below = np.flatnonzero(least * _FLOORS < early.min())
    log_above_FN = np.log(early - least * _FLOORS[below, None])
    off_N = log_size - log_size.mean()
    slope_F = log_above_FN @ off_N / (off_N @ off_N)
    if np.any(slope_F >= 0):
        return log_prior_FG
    residual_FN = log_above_FN - log_above_FN.mean(axis=1, keepdims=True) - slope_F[:, None] * off_N
    error_F = np.sqrt(np.sum(residual_FN**2, axis=1) / (len(off_N) - 2) / (off_N @ off_N))
    variance_F1 = _EARLY_SPREAD**2 + (error_F / slope_F)[:, None] ** 2
    off_FG = np.log(-slope_F[:, None] / _GAMMAS / _EARLY)
    told_FG = np.full_like(log_prior_FG, -np.inf)
    told_FG[below] = log_prior_FG[below] - 0.5 * (off_FG**2 / variance_F1 + np.log(variance_F1))
    return told_FG


def _weigh(
    log_size: Array,
    mean: Array,
    count: Array,
    variance: float,
    log_prior_FG: Array,
    holds: float,
    generator: np.random.Generator,
) -> _Laws:
    """Bayes with `log_prior_FG` on floor and gamma, a flat prior on height b, on kappa `holds` that it is 0 and the
    rest even over the others, and on the variance of the sizes' means the word of `_PRIOR_ROWS` that it is `variance`.
    Height and variance are integrated in closed form (linear regression with correlated residuals)."""
    floors_G, gammas_G = (grid.ravel() for grid in np.meshgrid(_FLOORS * mean.min(), _GAMMAS, indexing="ij"))
    # Residuals are relative to the loss.
    u_GN = np.exp(-gammas_G[:, None] * (log_size - log_size.mean())) / mean
    rest_GN = 1 - floors_G[:, None] / mean
    walk_NN = _walk(log_size[:, None] - log_size[0], log_size - log_size[0])
    ratios = _KAPPAS**2 / variance
    freedom = _PRIOR_ROWS + len(mean) - 1
    log_weights, heights, informations, squares, precisions = [], [], [], [], []
    kappa_weights = [holds] + [(1 - holds) / (len(_KAPPAS) - 1)] * (len(_KAPPAS) - 1)
    for ratio, prior in zip(ratios, kappa_weights, strict=True):
        covariance_NN = np.diag(count.mean() / count) + ratio * walk_NN
        precision_NN = np.linalg.inv(covariance_NN)
        weighted_GN = u_GN @ precision_NN
        information = np.sum(weighted_GN * u_GN, axis=1)
        height = np.sum(weighted_GN * rest_GN, axis=1) / information
        off_GN = rest_GN - height[:, None] * u_GN
        square = _PRIOR_ROWS * variance + np.sum(off_GN @ precision_NN * off_GN, axis=1)
        log_weight = -0.5 * (np.log(information) + freedom * np.log(square) + np.linalg.slogdet(covariance_NN)[1])
        log_weights.append(log_weight + np.log(prior) + log_prior_FG.ravel())
        heights.append(height)
        informations.append(information)
        squares.append(square)
        precisions.append(precision_NN)
    weights = np.exp(np.concatenate(log_weights) - np.max(log_weights))
    drifts, one = np.divmod(generator.choice(len(weights), _DRAWS, p=weights / weights.sum()), len(floors_G))
    variances = np.array(squares)[drifts, one] / generator.chisquare(freedom, _DRAWS)
    spread = np.sqrt(variances / np.array(informations)[drifts, one])
    b = np.maximum(np.array(heights)[drifts, one] + spread * generator.standard_normal(_DRAWS), 0.0)
    return _Laws(
        log_size=log_size,
        floors=floors_G[one],
        gammas=gammas_G[one],
        heights=b,
        drifts=drifts,
        variances=variances,
        residuals_SN=rest_GN[one] - b[:, None] * u_GN[one],
        ratios=ratios,
        precisions_KNN=np.array(precisions),
        scatter=float(np.sqrt(squares[0].min() / freedom)),
    )


def _warnings(size: Array, mean: Array, count: Array, seed_noise: float, scatter: float, fall: float) -> list[str]:
    found = []
    if np.any(np.diff(mean) > 0):
        found.append("a larger rung has a higher loss than a smaller one: rates, batch or noise hide the law")
    if scatter > max(3 * seed_noise, _SCATTER_THAT_TELLS):
        found.append(
            f"the sizes lie {100 * scatter:.1f} % off any smooth law, seeds only {100 * seed_noise:.1f} %: a setting "
            "does not carry over between them"
        )
    if _bends_down(np.log(size), np.log(mean), seed_noise / float(np.sqrt(count.mean()))):
        found.append(
            "the loss falls faster from rung to rung than any power law: something is about to be learned, and where "
            "that ends the rungs cannot tell"
        )
    elif fall > _FALL_THAT_IS_NEW:
        found.append(
            f"the loss is to fall by {100 * fall:.0f} % from the largest rung to the run: a ladder seldom tells such a "
            "fall, since the rungs may hardly have begun what is learned on the way"
        )
    if size[-1] / size[0] < 1.5:
        found.append(f"the largest rung is only {size[-1] / size[0]:.1f} times the smallest")
    return found


def _bends_down(log_size: Array, log_mean: Array, noise: float) -> bool:
    """Whether log loss over log size bends down by more than two standard errors: a power law is straight there, and
    with a floor it bends up."""
    design = np.stack([(log_size - log_size.mean()) ** power for power in (0, 1, 2)], axis=1)
    found, squares, _, _ = np.linalg.lstsq(design, log_mean, rcond=None)
    variance = max(noise**2, float(squares.sum()) / (len(log_mean) - 3))
    return bool(found[2] < -2 * np.sqrt(variance * np.linalg.inv(design.T @ design)[2, 2]))


def _three(values: Array) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return float(low), float(middle), float(high)
