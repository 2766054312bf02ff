"""Intervals against closed forms and published tables."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from talaria.eval.statistics import (
    binomial_stderr,
    bootstrap_interval,
    mean_interval,
    mean_stderr,
    t_quantile,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("degrees", "published"),  # the 97.5 % column of any table of Student's t
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_t_quantile_is_the_published_one(degrees: int, published: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(published, abs=5e-4)


def test_t_quantile_closed_forms() -> None:
    assert t_quantile(0.975, 1) == pytest.approx(math.tan(math.pi * 0.475), rel=1e-9)  # Cauchy
    p = 0.9
    assert t_quantile(p, 2) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)), rel=1e-9)
    assert t_quantile(0.5, 7) == pytest.approx(0, abs=1e-9)


def test_interval_over_seeds_uses_t_not_the_normal() -> None:
    mean, low, high = mean_interval([0.90, 0.94, 0.98])
    assert mean == pytest.approx(0.94)
    assert high - mean == pytest.approx(4.302653 * 0.04 / math.sqrt(3), rel=1e-6)
    assert mean - low == pytest.approx(high - mean)


def test_one_seed_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two seeds"):
        mean_interval([0.5])
    assert mean_stderr([0.5]) is None


def test_wilson_stays_inside_zero_and_one_where_the_normal_interval_does_not() -> None:
    low, high = wilson_interval(58, 60)
    assert 58 / 60 + 1.96 * binomial_stderr(58, 60) > 1 > high
    assert low == pytest.approx(0.8864, abs=5e-4)
    assert wilson_interval(0, 20)[0] == 0 and wilson_interval(20, 20)[1] == 1


def test_wilson_covers_at_the_rate_it_states() -> None:
    """Averaged over high true shares, where exams end up, as Brown, Cai and DasGupta (2001) compare intervals."""
    n, shares = 40, [0.90 + 0.001 * i for i in range(95)]

    def coverage(inside: Callable[[int, float], bool]) -> float:
        chances = (math.comb(n, k) * p**k * (1 - p) ** (n - k) for p in shares for k in range(n + 1) if inside(k, p))
        return sum(chances) / len(shares)

    def in_wilson(k: int, p: float) -> bool:
        low, high = wilson_interval(k, n)
        return low <= p <= high

    assert coverage(in_wilson) == pytest.approx(0.95, abs=0.02)
    assert coverage(lambda k, p: abs(k / n - p) <= 1.96 * binomial_stderr(k, n)) < 0.90


def test_bootstrap_agrees_with_the_normal_interval_on_many_values() -> None:
    luck = random.Random(0)
    values = [luck.gauss(1.0, 2.0) for _ in range(2000)]
    mean, stderr = sum(values) / len(values), mean_stderr(values)
    assert stderr is not None
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(mean - 1.96 * stderr, abs=0.2 * stderr)
    assert high == pytest.approx(mean + 1.96 * stderr, abs=0.2 * stderr)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval([3.0, 3.0]) == (3.0, 3.0)
