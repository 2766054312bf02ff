"""What the two ways share that give the best size for a compute budget without a law of the loss: power laws through
pairs of budget and size, N = N_0 C^a and D = D_0 C^b."""

from __future__ import annotations

import numpy as np

from talaria.scaling.fit import Fit, HeldOut
from talaria.scaling.points import FLOPS_PER_PARAMETER_AND_TOKEN, Array, Index

SAME_SIZE = 0.01
"""Sizes whose logs differ by less are one size, trained or read more than once."""
SAME_BUDGET = 0.05
"""The same of budgets."""


def clusters(values: Array, tolerance: float) -> list[Index]:
    """Indices of values that lie within `tolerance` of the next, in ascending order."""
    order = np.argsort(values)
    cuts = np.flatnonzero(np.diff(values[order]) > tolerance) + 1
    return list(np.split(order, cuts))


def power_laws(law: str, slope: float, offset: float, lines: Array, residuals: Array, n_points: int, seed: int) -> Fit:
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


def held_out(errors_B: Array, inside: int | None = None) -> HeldOut:
    """From errors of log size, predicted less found, at the held-out budgets."""
    relative_B = np.abs(np.expm1(errors_B))
    return HeldOut(len(errors_B), float(relative_B.mean()), float(relative_B.max()), inside)


def _both(lines: Array) -> dict[str, Array]:
    a, n_0 = lines[:, 0], np.exp(lines[:, 1])
    return {"N_0": n_0, "a": a, "D_0": 1 / (FLOPS_PER_PARAMETER_AND_TOKEN * n_0), "b": 1 - a}
