"""Intervals: how far a score may lie from the truth, over items (binomial, bootstrap) and over seeds (Student t)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from talaria.report.results import wilson_interval

__all__ = ["binomial_stderr", "bootstrap_interval", "mean_interval", "mean_stderr", "t_quantile", "wilson_interval"]


def binomial_stderr(successes: float, n: int) -> float:
    """Standard error of the share successes/n: sqrt(p (1 - p) / n)."""
    share = successes / n
    return math.sqrt(share * (1 - share) / n)


def mean_stderr(values: Sequence[float]) -> float | None:
    """Standard error of the mean; None for fewer than two values, which say nothing about their spread."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979); the same seed gives the same interval."""
    if not values:
        raise ValueError("no values to resample")
    sample = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = [sample[generator.integers(0, len(sample), len(sample))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of one score over independent seeds with its Student t interval: (mean, low, high). Needs two values."""
    if len(values) < 2:
        raise ValueError("an interval over seeds needs at least two seeds")
    mean = statistics.fmean(values)
    stderr = mean_stderr(values)
    assert stderr is not None
    half = t_quantile((1 + confidence) / 2, len(values) - 1) * stderr
    return mean, mean - half, mean + half


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t for whole degrees of freedom and 0.5 <= probability < 1, to 1e-10."""
    if degrees < 1 or not 0.5 <= probability < 1:
        raise ValueError(f"t quantile of {probability} at {degrees} degrees of freedom: out of range")
    low, high = 0.0, 1.0
    while _t_inside(high, degrees) < 2 * probability - 1:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, degrees) < 2 * probability - 1 else (low, middle)
    return high


def _t_inside(t: float, degrees: int) -> float:
    """P(|T| <= t), exact for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine_squared = math.cos(theta) ** 2
    odd = degrees % 2
    term = math.cos(theta) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine_squared * (k - 1) / k
        total += term
    if odd:
        return 2 / math.pi * (theta + math.sin(theta) * total)
    return math.sin(theta) * total
