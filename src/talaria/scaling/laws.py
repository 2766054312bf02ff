"""The laws by which loss falls with parameters, tokens and compute: each as log-loss and its derivatives.

All are fitted in the log of the loss, with the sums of their terms taken as log-sum-exp of the terms' logs, as the
replication of Chinchilla's third approach does (Besiroglu et al. 2024, equation 3). Natural logs; loss in nats a token.

Shapes: B problems, P parameters, N points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from talaria.scaling.points import Array, Points

Predict = Callable[[Array, Points], tuple[Array, Array]]


@dataclass(frozen=True)
class Law:
    """One formula. `predict(theta_BP, points)` gives log-losses_BN and derivatives_BPN; `coefficients` turns theta_BP
    into named arrays_B; `starts(points)` gives the grid that a fit begins from; `exponents` those of the best
    parameters and tokens against compute C = 6 N D, None where the law has none."""

    name: str
    needs: tuple[str, ...]
    predict: Predict
    coefficients: Callable[[Array], dict[str, Array]]
    starts: Callable[[Points], Array]
    exponents: Callable[[dict[str, Array]], tuple[Array, Array]] | None

    @property
    def axes(self) -> tuple[str, ...]:
        """The columns that its loss falls with."""
        return ("params", "tokens") if "params" in self.needs else ("flops",)


def rising(found: Mapping[str, float]) -> list[str]:
    """The exponents among the coefficients `found` by which a loss rises with size or text, or stays."""
    return [name for name in ("alpha", "beta", "alpha_N", "alpha_D") if name in found and not found[name] > 0]


# ------------------------------------------------------------------------------------------ chinchilla


def _chinchilla(theta: Array, points: Points) -> tuple[Array, Array]:
    """L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2); theta = log A, log B, log E, alpha, beta."""
    x, y = np.log(points.params), np.log(points.tokens)
    terms = np.empty((3, len(theta), len(points)))
    terms[0] = theta[:, 0:1] - theta[:, 3:4] * x
    terms[1] = theta[:, 1:2] - theta[:, 4:5] * y
    terms[2] = theta[:, 2:3]
    log_loss, shares = _log_sum(terms)
    slopes = np.empty((len(theta), 5, len(points)))
    slopes[:, 0], slopes[:, 1], slopes[:, 2] = shares
    slopes[:, 3], slopes[:, 4] = -shares[0] * x, -shares[1] * y
    return log_loss, slopes


def _chinchilla_coefficients(theta: Array) -> dict[str, Array]:
    a, b, e, alpha, beta = theta.T
    with np.errstate(over="ignore"):  # a draw of points that carry no law may have no finite scale
        return {"E": np.exp(e), "A": np.exp(a), "B": np.exp(b), "alpha": alpha, "beta": beta}


def _chinchilla_starts(points: Points) -> Array:
    """The replication's grid: 4,500 starts."""
    high, low = [0.0, 5.0, 10.0, 15.0, 20.0, 25.0], [0.0, 0.5, 1.0, 1.5, 2.0]
    return np.array(list(itertools.product(high, high, [-1.0, -0.5, 0.0, 0.5, 1.0], low, low)))


def _chinchilla_exponents(found: dict[str, Array]) -> tuple[Array, Array]:
    """N ~ C^(beta / (alpha + beta)), D ~ C^(alpha / (alpha + beta)) (Hoffmann et al. 2022, equation 4)."""
    total = found["alpha"] + found["beta"]
    return found["beta"] / total, found["alpha"] / total


# ---------------------------------------------------------------------------------------------- kaplan


def _kaplan(theta: Array, points: Points) -> tuple[Array, Array]:
    """L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D (Kaplan et al. 2020, equation 1.5); theta = log N_c, log
    D_c, alpha_N, alpha_D."""
    log_n_c, log_d_c, alpha_n, alpha_d = (theta[:, i : i + 1] for i in range(4))
    from_size = log_n_c - np.log(points.params)
    terms = np.stack([alpha_n / alpha_d * from_size, log_d_c - np.log(points.tokens)])
    total, shares = _log_sum(terms)
    slopes = np.stack(
        [alpha_n * shares[0], alpha_d * shares[1], shares[0] * from_size, total - shares[0] * terms[0]], axis=1
    )
    return alpha_d * total, slopes


def _kaplan_coefficients(theta: Array) -> dict[str, Array]:
    log_n_c, log_d_c, alpha_n, alpha_d = theta.T
    return {"N_c": np.exp(log_n_c), "D_c": np.exp(log_d_c), "alpha_N": alpha_n, "alpha_D": alpha_d}


def _kaplan_starts(points: Points) -> Array:
    """Rates from slow to fast, each with the scales at which one term alone would give the median loss."""
    x, y, z = (float(np.median(np.log(values))) for values in (points.params, points.tokens, points.loss))
    rates = [0.03, 0.06, 0.1, 0.2, 0.4, 0.8]
    return np.array(
        [[x + z * s / n, y + z * t / d, n, d] for n, d in itertools.product(rates, rates) for s, t in _SHARES]
    )


_SHARES = ((0.5, 0.5), (1.0, 0.5), (0.5, 1.0), (1.0, 1.0))


def _kaplan_exponents(found: dict[str, Array]) -> tuple[Array, Array]:
    """Minimum of equation 1.5 under C = 6 N D: N ~ C^(alpha_D / (alpha_N + alpha_D)). The paper's own 0.73 is of
    another path, where models stop far before they converge (its section 6)."""
    total = found["alpha_N"] + found["alpha_D"]
    return found["alpha_D"] / total, found["alpha_N"] / total


# ------------------------------------------------------------------------------------------ repetition


def _repeated(theta: Array, points: Points) -> tuple[Array, Array]:
    """Chinchilla's law over effective parameters and tokens (Muennighoff et al. 2023, equations 5 and 6); theta = log
    A, log B, log E, alpha, beta, log R_D, log R_N.

    With U different tokens, D' = U + U R_D (1 - exp(-(D / U - 1) / R_D)), and parameters beyond those that are best for
    U are worth as little (section 3.1): N' from N and those as D' from D and U.
    """
    assert points.unique_tokens is not None
    a, b, e, alpha, beta = (theta[:, i : i + 1] for i in range(5))
    r_d, r_n = np.exp(theta[:, 5:6]), np.exp(theta[:, 6:7])
    unique, log_size = np.minimum(points.unique_tokens, points.tokens), np.log(points.params)
    log_unique = np.log(unique)
    worth_d, _, by_r_d = _worth(points.tokens / unique - 1, r_d)
    log_d = log_unique + worth_d
    # Best for U tokens is where both terms fall alike: alpha A / N^alpha = beta B / U^beta. Smaller models count whole.
    best = np.minimum((np.log(alpha / beta) + a - b + beta * log_unique) / alpha, log_size)
    times_more = np.exp(np.minimum(log_size - best, 700.0))
    worth_n, rate, by_r_n = _worth(times_more - 1, r_n)
    log_n = best + worth_n
    by_best = np.where(best < log_size, 1 - times_more * rate, 0.0)

    terms = np.empty((3, len(theta), len(points)))
    terms[0], terms[1], terms[2] = a - alpha * log_n, b - beta * log_d, e
    log_loss, shares = _log_sum(terms)
    from_size, from_best = shares[0], shares[0] * by_best
    slopes = np.empty((len(theta), 7, len(points)))
    slopes[:, 0], slopes[:, 1], slopes[:, 2] = from_size - from_best, shares[1] + from_best, shares[2]
    slopes[:, 3] = -from_size * log_n - from_best * (1 / alpha - best)
    slopes[:, 4] = -shares[1] * log_d - from_best * (log_unique - 1 / beta)
    slopes[:, 5], slopes[:, 6] = -shares[1] * beta * by_r_d, -from_size * alpha * by_r_n
    return log_loss, slopes


def _worth(more: Array, r: Array) -> tuple[Array, Array, Array]:
    """Log of what 1 and `more` repetitions are worth, with its derivatives by `more` and by log r."""
    fading = np.exp(-more / r)
    worth = 1 - r * np.expm1(-more / r)
    return np.log(worth), fading / worth, (worth - 1 - more * fading) / worth


def _repeated_coefficients(theta: Array) -> dict[str, Array]:
    return _chinchilla_coefficients(theta[:, :5]) | {"R_D": np.exp(theta[:, 5]), "R_N": np.exp(theta[:, 6])}


def _repeated_starts(points: Points) -> Array:
    base = [
        [a, b, e, alpha, beta]
        for a, b, e, alpha, beta in itertools.product(
            [3.0, 6.0, 9.0], [3.0, 7.0, 11.0], [-0.5, 0.5], [0.2, 0.4, 0.7], [0.2, 0.4, 0.7]
        )
    ]
    return np.array([[*row, d, n] for row in base for d in (1.0, 3.0) for n in (1.0, 3.0)])


# ---------------------------------------------------------------------------------------------- broken


def _broken(theta: Array, points: Points) -> tuple[Array, Array]:
    """y = a + b C^-c0 (1 + (C / d1)^(1 / f1))^(-c1 f1) with C the compute (Caballero et al. 2023, equation 1, one
    break); theta = log a, log b, c0, c1, log d1, log f1."""
    log_a, log_b, c0, c1, log_d, log_f = (theta[:, i : i + 1] for i in range(6))
    x, f = np.log(points.flops), np.exp(log_f)
    z = (x - log_d) / f
    bend = np.logaddexp(0.0, z)
    gate = np.exp(np.minimum(z, 0.0) - np.logaddexp(0.0, -np.abs(z)))
    power = log_b - c0 * x - c1 * f * bend
    total, (_, share) = _log_sum(np.stack([np.broadcast_to(log_a, power.shape), power]))
    slopes = np.stack(
        [1 - share, share, -share * x, -share * f * bend, share * c1 * gate, -share * c1 * f * (bend - z * gate)],
        axis=1,
    )
    return total, slopes


def _broken_coefficients(theta: Array) -> dict[str, Array]:
    log_a, log_b, c0, c1, log_d, log_f = theta.T
    values = (np.exp(log_a), np.exp(log_b), c0, c1, np.exp(log_d), np.exp(log_f))
    return dict(zip(("a", "b", "c0", "c1", "d1", "f1"), values, strict=True))


def _broken_starts(points: Points) -> Array:
    x, y = np.log(points.flops), np.log(points.loss)
    starts = []
    for share, place, sharpness, first, second in itertools.product(
        [0.05, 0.5, 0.9], [0.2, 0.35, 0.5, 0.65, 0.8], [0.1, 0.5, 1.5], [0.02, 0.08, 0.2], [-0.1, 0.1, 0.3]
    ):
        floor = math.log(share) + float(y.min())
        rest = float(np.median(np.log(np.maximum(points.loss - math.exp(floor), 1e-6))))
        d = float(np.quantile(x, place))
        log_b = rest + first * float(np.median(x)) + second * max(float(np.median(x)) - d, 0.0)
        starts.append([floor, log_b, first, second, d, math.log(sharpness)])
    return np.array(starts)


# ------------------------------------------------------------------------------------------------ all


def _log_sum(terms: Array) -> tuple[Array, Array]:
    """Log of the sum of exp over the first axis, and each term's share of that sum."""
    top = terms.max(axis=0)
    shares = np.exp(terms - top)
    total = shares.sum(axis=0)
    shares /= total
    return top + np.log(total), shares


_SIZE_AND_TEXT = ("params", "tokens", "loss")
CHINCHILLA = Law(
    "chinchilla", _SIZE_AND_TEXT, _chinchilla, _chinchilla_coefficients, _chinchilla_starts, _chinchilla_exponents
)
KAPLAN = Law("kaplan", _SIZE_AND_TEXT, _kaplan, _kaplan_coefficients, _kaplan_starts, _kaplan_exponents)
REPEATED = Law(
    "repeated",
    (*_SIZE_AND_TEXT, "unique_tokens"),
    _repeated,
    _repeated_coefficients,
    _repeated_starts,
    _chinchilla_exponents,
)
BROKEN = Law("broken", ("flops", "loss"), _broken, _broken_coefficients, _broken_starts, None)
LAWS = {law.name: law for law in (KAPLAN, CHINCHILLA, REPEATED, BROKEN)}
