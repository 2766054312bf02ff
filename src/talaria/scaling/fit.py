"""A law and a table of runs in; coefficients with bootstrap intervals, residuals, held-out error and warnings out.

fit = fit_law("chinchilla", read_points(Path("runs.csv"), needs=law_needs("chinchilla")), draws=1000, seed=0)
fit.interval("alpha", 0.9), fit.predict_loss(params=7e9, tokens=1.4e11, level=0.8)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from talaria.errors import UserError
from talaria.files import atomic_write
from talaria.scaling.laws import LAWS, Law
from talaria.scaling.least_squares import HUBER_DELTA, minimise, minimise_from_grid
from talaria.scaling.points import Array, Points

HELD_OUT_SHARE = 0.1
"""Of the points, those with the most compute are predicted from the rest."""
_MOST_ADDED = 4.0
"""Standard deviations, to a point of leverage 1; of normal errors it is 1.25. Without a bound a density of 0 at the law
would make errors infinite."""
_MOST_PULL = 0.98
"""A bound to leverage where a point is measured without itself, since leverage is 1 where it alone tells of a
coefficient."""


@dataclass(frozen=True)
class HeldOut:
    """The runs of most compute, predicted from the others: relative errors of the loss, and how many fell inside the
    interval. Of isoflop and envelope, which have no law of the loss: the largest budgets' best sizes; None where
    there is no interval of them."""

    n: int
    mean_relative_error: float
    largest_relative_error: float
    inside_interval90: int | None


@dataclass(frozen=True)
class Fit:
    """One law through one table. `draws` holds each coefficient's bootstrap values; `residuals_N` are log loss over
    prediction."""

    law: str
    coefficients: dict[str, float]
    draws: dict[str, Array]
    exponents: dict[str, float] | None
    exponent_draws: dict[str, Array]
    residuals: Array
    n_points: int
    seed: int
    theta: Array | None = None
    theta_draws: Array | None = None
    held_out: HeldOut | None = None
    warnings: list[str] = field(default_factory=list)

    def interval(self, name: str, level: float = 0.9) -> tuple[float, float]:
        """Percentile bootstrap interval of a coefficient (Efron 1979)."""
        return _interval(self.draws[name], level)

    def predict_loss(
        self, params: float, tokens: float, level: float = 0.9, unique_tokens: float | None = None
    ) -> tuple[float, float, float]:
        """Loss of a run yet to be made, with the interval that should hold it at `level`: (value, low, high).

        The interval joins the draws' predictions with the fit's residuals, widened for the fitted parameters. Raises
        UserError for laws that give no loss of a size and a number of tokens.
        """
        if self.theta is None or self.theta_draws is None:
            raise UserError(f"law {self.law} gives the best size, not the loss; fit chinchilla or kaplan for a loss")
        law = LAWS[self.law]
        one = _single(params, tokens, unique_tokens)
        value = float(np.exp(law.predict(self.theta[None], one)[0][0, 0]))
        predicted = law.predict(self.theta_draws, one)[0][:, 0]
        return value, *_interval(np.exp(predicted + self._noise(len(predicted), len(self.theta))), level)

    def _noise(self, n: int, n_coefficients: int) -> Array:
        wider = np.sqrt(len(self.residuals) / max(1, len(self.residuals) - n_coefficients))
        noise: Array = np.random.default_rng(self.seed).choice(self.residuals, n) * wider
        return noise

    def to_json(self) -> dict[str, Any]:
        """What `talaria fit --json` prints."""
        logs = np.abs(self.residuals)
        return {
            "law": self.law,
            "coefficients": self.coefficients,
            "interval90": {name: list(self.interval(name)) for name in self.coefficients},
            "exponents": self.exponents,
            "exponents_interval90": {
                name: list(_interval(values, 0.9)) for name, values in self.exponent_draws.items()
            },
            "n_points": self.n_points,
            "seed": self.seed,
            "draws": len(next(iter(self.draws.values()))),
            "residuals": {"median": float(np.median(logs)), "rms": float(np.sqrt(np.mean(logs**2)))},
            "held_out": None if self.held_out is None else vars(self.held_out),
            "warnings": self.warnings,
            "theta": None if self.theta is None else self.theta.tolist(),
            "theta_covariance": None if self.theta_draws is None else np.cov(self.theta_draws.T).tolist(),
        }


def fit_law(name: str, points: Points, draws: int = 1000, seed: int = 0) -> Fit:
    """Fit one of `LAWS`: the best of a grid of starts, then `draws` tables of other errors (`wild_draws`) from there.

    Raises UserError where the rows are fewer than the coefficients or all of one size.
    """
    law = LAWS[name]
    _check_carries(law, points)
    target = np.log(points.loss)

    def model(theta: Array) -> tuple[Array, Array]:
        return law.predict(theta, points)

    theta, _ = minimise_from_grid(model, law.starts(points), target)
    theta_draws = wild_draws(law, theta, points, random_signs(draws, len(points), seed), tolerance=1e-7)
    told = {key: float(values[0]) for key, values in law.coefficients(theta[None]).items()}
    drawn = law.coefficients(theta_draws)
    exponents, exponent_draws = _exponents(law, told, drawn)
    return Fit(
        law=name,
        coefficients=told,
        draws=drawn,
        exponents=exponents,
        exponent_draws=exponent_draws,
        residuals=target - model(theta[None])[0][0],
        n_points=len(points),
        seed=seed,
        theta=theta,
        theta_draws=theta_draws,
    )


def random_signs(draws: int, n: int, seed: int) -> Array:
    """On which side of the law each point of each draw lies: 1 or -1, float64 of (draws, n)."""
    return np.random.default_rng(seed).choice([-1.0, 1.0], (draws, n))


def wild_draws(law: Law, theta: Array, points: Points, signs_SN: Array, tolerance: float) -> Array:
    """The wild bootstrap (Wu 1986) around a fit `theta`: fits_SP to points that lie as far from it as these would, had
    they no part in it, on the sides of `signs_SN`. Fits that come to no finite objective are left out."""
    predicted, slopes = law.predict(theta[None], points)
    targets_SN = predicted[0] + signs_SN * error_sizes(np.log(points.loss) - predicted[0], slopes[0])
    starts_SP = np.repeat(theta[None], len(targets_SN), 0)
    found, objectives = minimise(lambda batch: law.predict(batch, points), starts_SP, targets_SN, tolerance=tolerance)
    return found[np.isfinite(objectives)]


def error_sizes(residuals_N: Array, slopes_PN: Array) -> Array:
    """How far each of N points would lie from a law that it had no part in, so that every point keeps its own scale.

    A point draws the fit towards it, so |residual| is too small by its leverage h times psi / mean(psi') to first order
    in h, where psi is the derivative of Huber's loss and mean(psi') the share of errors within its delta. For errors
    beyond delta that is h / (2 density at 0), which Feng, He and Hu 2011 (Biometrika 98, 995) add for absolute
    deviations; within, the divisor makes it the residual of a fit without the point, as for squares. A law of P
    coefficients, so fitted, goes through P points whatever their errors are: the P nearest count as typical, and the
    share is told by the others. It supposes errors that are likeliest near the law: of two clusters on either side the
    draws tell too little.
    """
    size, n_coefficients = np.abs(residuals_N), len(slopes_PN)
    order = np.argsort(size)
    nearest, rest = order[:n_coefficients], order[n_coefficients:]
    spread = min(residuals_N.std(), float(np.subtract(*np.quantile(residuals_N, [0.75, 0.25]))) / 1.34)
    width = max(0.9 * spread * len(size) ** -0.2, 1e-12)  # of a kernel: Silverman 1986, equation 3.31
    shares = [
        near.cdf(HUBER_DELTA) - near.cdf(-HUBER_DELTA) for near in (NormalDist(r, width) for r in residuals_N[rest])
    ]
    scatter = max(float(np.sqrt(np.mean(size**2))), 1e-300)
    within = max(float(np.mean(shares)), min(1.0, HUBER_DELTA / (_MOST_ADDED * scatter)))
    psi = np.minimum(size, HUBER_DELTA)
    psi[nearest] = np.maximum(psi[nearest], (1 - within) * np.median(psi[rest]))
    h = leverage(slopes_PN)
    sizes: Array = size + h / (1 - np.minimum(h * within, _MOST_PULL)) * psi / within
    return sizes


def leverage(slopes_PN: Array) -> Array:
    """Diagonal of the hat matrix of N points, between 0 and 1. Coefficients that no point tells of are left out."""
    norms = np.linalg.norm(slopes_PN, axis=1, keepdims=True)
    directions, measured, _ = np.linalg.svd((slopes_PN / np.where(norms > 0, norms, 1)).T, full_matrices=False)
    hat: Array = np.sum(directions[:, measured > 1e-10 * measured[0]] ** 2, axis=1)
    return hat


def hold_out(name: str, points: Points, draws: int = 200, seed: int = 0) -> HeldOut | None:
    """Predict the runs of most compute from the rest; None where too few rows would be left."""
    n_out = max(1, round(HELD_OUT_SHARE * len(points)))
    order = np.argsort(points.flops, kind="stable")
    rest, out = points.take(np.sort(order[:-n_out])), points.take(np.sort(order[-n_out:]))
    if len(rest) < 2 * LAWS[name].starts(points).shape[1] or np.ptp(rest.flops) == 0:
        return None
    try:
        fit = fit_law(name, rest, draws, seed)
    except UserError:
        return None
    assert fit.theta is not None and fit.theta_draws is not None
    law, target = LAWS[name], np.log(out.loss)
    errors = np.abs(np.expm1(law.predict(fit.theta[None], out)[0][0] - target))
    drawn = law.predict(fit.theta_draws, out)[0] + fit._noise(len(fit.theta_draws), len(fit.theta))[:, None]
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    inside = int(np.sum((low <= target) & (target <= high)))
    return HeldOut(n_out, float(errors.mean()), float(errors.max()), inside)


def write_fit(fit: Fit, path: Path) -> None:
    """Write what `talaria plan --fit` reads."""
    atomic_write(path, json.dumps(fit.to_json(), indent=1) + "\n")


def _exponents(
    law: Law, told: dict[str, float], drawn: dict[str, Array]
) -> tuple[dict[str, float] | None, dict[str, Array]]:
    if law.exponents is None:
        return None, {}
    single = {key: np.array([value]) for key, value in told.items()}
    names = ("parameters", "tokens")
    found = {key: float(values[0]) for key, values in zip(names, law.exponents(single), strict=True)}
    return found, dict(zip(names, law.exponents(drawn), strict=True))


def n_settings(law: Law, points: Points) -> int:
    """How many different runs the law tells apart: those that differ in their seeds alone count once."""
    columns = [getattr(points, name) for name in law.axes]
    if points.unique_tokens is not None and "unique_tokens" in law.needs:
        columns.append(np.minimum(points.unique_tokens, points.tokens))
    return int(np.unique(columns, axis=1).shape[1])


def _check_carries(law: Law, points: Points) -> None:
    n_coefficients = len(law.coefficients(law.starts(points)[:1]))
    different = n_settings(law, points)
    if different <= n_coefficients:
        rows = f"{len(points)} rows" + ("" if different == len(points) else f", {different} of them different,")
        raise UserError(
            f"{rows} cannot carry the {n_coefficients} coefficients of {law.name}; give at least "
            f"{3 * n_coefficients} runs that differ in {' and '.join(law.axes)}"
        )
    for name in law.axes:
        values = getattr(points, name)
        if np.ptp(np.log(values)) < 1e-9:
            raise UserError(
                f"line {points.lines[0]} and all {len(points) - 1} rows after it have {name} {values[0]:.6g}: "
                f"{law.name} needs runs that differ in {name}"
            )


def _interval(values: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _single(params: float, tokens: float, unique_tokens: float | None) -> Points:
    def one(value: float) -> Array:
        return np.array([value], dtype=np.float64)

    return Points(
        params=one(params),
        tokens=one(tokens),
        flops=one(6 * params * tokens),
        loss=one(1.0),
        lines=np.array([0]),
        unique_tokens=one(tokens if unique_tokens is None else unique_tokens),
    )
