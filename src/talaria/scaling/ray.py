"""Small runs along one ray, model and text grown in proportion, and the loss of a larger run farther along it.

    prediction = predict_along(sizes, losses, target=853_376, level=0.8, seed=0)

On such a ray Chinchilla's two terms are powers of the same size n, so that one power law with a floor carries them,
L = E + A n^-gamma (Hoffmann et al. 2022, equation 2, with D = r N). Few rungs cannot tell E, A and gamma apart, and one
best fit with the draws around it pretends that they can. Here every floor from 0 to the least loss and every exponent
is weighed by how well it passes through the rungs; the prediction is the mixture of them all, so that what the rungs
leave open is in the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from talaria.errors import UserError
from talaria.scaling.points import Array

_GAMMAS = np.geomspace(0.02, 1.5, 120)
_GAMMA, _GAMMA_SPREAD = 0.2, 0.7
"""Log-normal weight of the exponents of the model's size before the rungs are seen: published ones, 0.08 (Kaplan et al.
2020, without a floor) to 0.37 (Besiroglu et al. 2024), lie within 1.3 deviations. With all exponents alike, a ladder
of a development seed whose two largest sizes happened to lie close took that for a floor just below them, and predicted
6 % too much."""
_FLOORS = (np.arange(120) + 0.5) / 120
"""As shares of the least loss."""
_PRIOR_ROWS = 2
"""Seeds tell the least scatter about the law; so many rungs' worth is that word."""
_LEAST_SCATTER = 1e-3
"""Of log loss between seeds; repeated runs that agree better do so by chance."""
_DRAWS = 20_000
_FEWEST_SIZES = 4


@dataclass(frozen=True)
class RayPrediction:
    """Nats a token of the larger run, with the interval that should hold it at `level`. `floor` and `gamma` are
    (10 %, 50 %, 90 %) of the laws that the rungs admit; `seed_noise` is the standard deviation of log loss between
    seeds, `scatter` that of the sizes' mean log losses about the law. `at` is the law's median and interval, without
    a run's own noise, at `sizes`: rows of (size, low, median, high)."""

    value: float
    low: float
    high: float
    level: float
    floor: tuple[float, float, float]
    gamma: tuple[float, float, float]
    seed_noise: float
    scatter: float
    at: list[tuple[float, float, float, float]]
    warnings: list[str]


def predict_along(
    sizes: Sequence[float], losses: Sequence[float], target: float, level: float = 0.8, seed: int = 0
) -> RayPrediction:
    """The loss at size `target` from runs of `sizes`, each size as often as it has seeds.

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
    posterior = _weigh(np.log(size), mean, count, seed_noise**2 / float(count.mean()))
    e, gamma, b, variance = posterior.draw(generator, _DRAWS)

    def law(n: float, draws: int = _DRAWS) -> Array:
        loss: Array = e[:draws] + b[:draws] * np.exp(-gamma[:draws] * (np.log(n) - posterior.centre))
        return loss

    # One run scatters about the law as a mean of sizes does, and by what averaging took from its seeds' noise.
    own = variance + seed_noise**2 * (1 - 1 / float(count.mean()))
    reached = law(target) * np.exp(np.sqrt(own) * generator.standard_normal(_DRAWS))
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = (float(end) for end in np.quantile(reached, tails))
    at = []
    for n in np.geomspace(size[0], target, 25):
        ends = np.quantile(law(float(n), 2000), [tails[0], 0.5, tails[1]])
        at.append((float(n), float(ends[0]), float(ends[1]), float(ends[2])))
    warnings = _warnings(size, mean, count, seed_noise, float(np.sqrt(np.median(variance))))
    return RayPrediction(
        value=float(np.median(reached)),
        low=low,
        high=high,
        level=level,
        floor=_three(e),
        gamma=_three(gamma),
        seed_noise=seed_noise,
        scatter=float(np.sqrt(np.median(variance))),
        at=at,
        warnings=warnings,
    )


@dataclass(frozen=True)
class _Posterior:
    """Weights of a grid of floors and exponents, each with the best height b of its power law at the centre."""

    centre: float
    floors_G: Array
    gammas_G: Array
    weights_G: Array
    heights_G: Array
    information_G: Array
    squares_G: Array
    freedom: float

    def draw(self, generator: np.random.Generator, n: int) -> tuple[Array, Array, Array, Array]:
        """Floors, exponents, heights and variances of log loss of `n` laws."""
        one = generator.choice(len(self.weights_G), n, p=self.weights_G)
        variance = self.squares_G[one] / generator.chisquare(self.freedom, n)
        b = self.heights_G[one] + np.sqrt(variance / self.information_G[one]) * generator.standard_normal(n)
        return self.floors_G[one], self.gammas_G[one], np.maximum(b, 0.0), variance


def _weigh(log_size: Array, mean: Array, count: Array, variance: float) -> _Posterior:
    """Bayes with flat priors on floor and height b, a log-normal one on gamma, and on the variance of the sizes' means
    the word of `_PRIOR_ROWS` that it is `variance`. Height and variance are integrated in closed form (linear
    regression)."""
    centre = float(log_size.mean())
    floors_G, gammas_G = (grid.ravel() for grid in np.meshgrid(_FLOORS * mean.min(), _GAMMAS, indexing="ij"))
    w = count / count.mean() / mean**2  # residuals are relative to the loss
    u_GN = np.exp(-gammas_G[:, None] * (log_size - centre))
    rest_GN = mean - floors_G[:, None]
    information = (w * u_GN**2).sum(axis=1)
    heights = (w * u_GN * rest_GN).sum(axis=1) / information
    squares = _PRIOR_ROWS * variance + (w * (rest_GN - heights[:, None] * u_GN) ** 2).sum(axis=1)
    freedom = _PRIOR_ROWS + len(mean) - 1
    log_weight = -0.5 * np.log(information) - 0.5 * freedom * np.log(squares)
    log_weight -= 0.5 * (np.log(gammas_G / _GAMMA) / _GAMMA_SPREAD) ** 2
    weights = np.exp(log_weight - log_weight.max())
    return _Posterior(
        centre, floors_G, gammas_G, weights / weights.sum(), heights, information, squares, float(freedom)
    )


def _warnings(size: Array, mean: Array, count: Array, seed_noise: float, scatter: float) -> list[str]:
    found = []
    if np.any(np.diff(mean) > 0):
        found.append("a larger rung has a higher loss than a smaller one: rates, batch or noise hide the law")
    if scatter > 3 * seed_noise:
        found.append(
            f"the sizes lie {100 * scatter:.1f} % off any smooth law, seeds only {100 * seed_noise:.1f} %: a setting "
            "does not carry over between them"
        )
    if _bends_down(np.log(size), np.log(mean), seed_noise / float(np.sqrt(count.mean()))):
        found.append(
            "the loss falls faster from rung to rung than any power law: something is about to be learned, and where "
            "that ends the rungs cannot tell"
        )
    if size[-1] / size[0] < 2:
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
