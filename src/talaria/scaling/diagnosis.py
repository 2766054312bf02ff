"""What a fit stands on: warnings where the points cannot carry the law, each naming its rows.

Too few rows, an axis without spread, two axes that move together, a few rows that move the fit by themselves,
parameters that seem to hold embeddings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from talaria.scaling.fit import Fit, n_settings, random_signs, wild_draws
from talaria.scaling.laws import LAWS, Law, rising
from talaria.scaling.least_squares import minimise
from talaria.scaling.points import Array, Index, Points

_ROWS_A_COEFFICIENT = 3
_SPREAD = 8.0
"""The largest value of an axis over its smallest; below it an exponent is read from less than a decade."""
_TOGETHER = 0.95
"""Correlation of log N and log D from which on their terms cannot be told apart."""
_FEW = 0.02
"""The share of the rows that must not be able to move a fit beyond its own uncertainty."""
_MOVED = 3.0
"""Standard errors that a coefficient must move by: hundreds of groups are looked at, and the largest of so many is
above 2 by chance."""
_LEFT_OUT_ONE_BY_ONE = 400
_EMBEDDING_SHARE = 0.1
_EMBEDDING_EVIDENCE = 10.83
"""Chi-squared with one degree of freedom at 0.001."""


def diagnose(fit: Fit, points: Points, seed: int = 0) -> list[str]:
    """Warnings of a fit by one of `LAWS`."""
    law = LAWS[fit.law]
    assert fit.theta is not None
    warnings = []
    if (different := n_settings(law, points)) < _ROWS_A_COEFFICIENT * len(fit.theta):
        warnings.append(
            f"too few points: {different} different rows for {len(fit.theta)} coefficients; the intervals may be too "
            f"narrow, so take {_ROWS_A_COEFFICIENT * len(fit.theta)} or more"
        )
    for name in rising(fit.coefficients):
        warnings.append(
            f"{name} is {fit.coefficients[name]:.3g}: the loss does not fall with scale, which no plan can use; are "
            "columns exchanged, or the runs not comparable?"
        )
    for name in law.axes:
        values = getattr(points, name)
        if (spread := float(values.max() / values.min())) < _SPREAD:
            warnings.append(
                f"no spread in {name}: the largest is {spread:.3g} times the smallest; its exponent is hardly measured"
            )
    if len(law.axes) == 2:
        together = float(np.corrcoef(np.log(points.params), np.log(points.tokens))[0, 1])
        if together > _TOGETHER:
            warnings.append(
                f"params and tokens rise together (correlation {together:.3f}): the law cannot tell which of them "
                "lowers the loss; add runs of one size with more and fewer tokens"
            )
    if "unique_tokens" in law.needs:
        warnings += _repetition(points)
    if (found := movers(law, fit.theta, points, seed)) is not None:
        warnings.append(found.told(law, fit.theta, points))
    if law.name == "broken" and fit.coefficients["f1"] < float(np.median(np.diff(np.unique(np.log(points.flops))))):
        warnings.append("the break is sharper than the points lie apart: d1 is known, f1 is not")
    if "params" in law.needs:
        warnings += _embeddings(law, fit.theta, points)
    return warnings


@dataclass(frozen=True)
class Movers:
    """Rows without which the fit is another: `rows` (indices), the fit without them, and the largest move of a
    coefficient in that fit's standard errors."""

    rows: Index
    which: str
    theta: Array
    errors: float

    def told(self, law: Law, theta: Array, points: Points) -> str:
        before, after = law.coefficients(theta[None]), law.coefficients(self.theta[None])
        moved = ", ".join(f"{name} {before[name][0]:.4g} -> {after[name][0]:.4g}" for name in before)
        lines = ", ".join(str(line) for line in sorted(points.lines[self.rows].tolist()))
        name = "one point moves" if len(self.rows) == 1 else f"{len(self.rows)} points move"
        where = "" if len(self.rows) == 1 else "s"
        return (
            f"{name} the fit by {self.errors:.1f} standard errors: line{where} {lines} ({self.which}). Without: "
            f"{moved}. Look at {'it' if len(self.rows) == 1 else 'them'}; --without {lines.replace(' ', '')} leaves "
            f"{'it' if len(self.rows) == 1 else 'them'} out"
        )


def movers(law: Law, theta: Array, points: Points, seed: int = 0, draws: int = 400) -> Movers | None:
    """The group of rows that moves the fit most, if it moves a coefficient by three standard errors or more.

    Looked at are every single row, and at both ends of loss, params, tokens and flops the outermost rows, up to 2 %
    of all: rows that err together hide each other when they are left out one at a time.
    """
    target = np.log(points.loss)

    def model(batch: Array) -> tuple[Array, Array]:
        return law.predict(batch, points)

    groups = [group for group in _groups(law, points) if n_settings(law, _without(points, group[0])) > len(theta)]
    counts = np.ones((len(groups), len(points)))
    for place, (rows, _) in enumerate(groups):
        counts[place, rows] = 0
    refits, _ = minimise(model, np.repeat(theta[None], len(groups), 0), target, counts, tolerance=1e-9)
    # First ranked by the change of the predictions, whose scale needs no draws, then the foremost are measured by their
    # own: by the same draws, so that groups that share rows differ by what they leave out alone.
    change = np.abs(model(refits)[0] - model(theta[None])[0]).mean(axis=1)
    signs = random_signs(draws, len(points), seed)
    found: Movers | None = None
    for place in np.argsort(-change)[:4]:
        rows, which = groups[place]
        drawn = wild_draws(law, refits[place], _without(points, rows), np.delete(signs, rows, axis=1), tolerance=1e-6)
        # By the median deviation: a few draws may go astray.
        spread = 1.4826 * np.median(np.abs(drawn - np.median(drawn, axis=0)), axis=0)
        errors = float(np.max(np.abs(refits[place] - theta) / np.maximum(spread, 1e-12)))
        if errors > _MOVED and (found is None or errors > found.errors):
            found = Movers(rows, which, refits[place], errors)
    return found


def _without(points: Points, rows: Index) -> Points:
    return points.take(np.delete(np.arange(len(points)), rows))


def _groups(law: Law, points: Points) -> list[tuple[Index, str]]:
    groups: list[tuple[Index, str]] = []
    few = math.ceil(_FEW * len(points))
    axes: dict[str, Array] = {name: getattr(points, name) for name in ("loss", "flops", *law.axes)}
    for name, values in axes.items():
        order = np.argsort(values, kind="stable")
        for word, ends in (("lowest", order), ("highest", order[::-1])):
            groups += [(ends[:size], f"{word} {name}") for size in range(2, few + 1)]
    if len(points) <= _LEFT_OUT_ONE_BY_ONE:
        groups += [(np.array([row]), f"loss {points.loss[row]:.4g}") for row in range(len(points))]
    else:
        groups += [
            (order[:1], f"an end of {name}") for name, v in axes.items() for order in (np.argsort(v), np.argsort(-v))
        ]
    # The highest losses may be the fewest tokens: told by their loss, whichever rounding would rank first.
    first: dict[frozenset[int], tuple[Index, str]] = {}
    for rows, which in groups:
        first.setdefault(frozenset(rows.tolist()), (rows, which))
    return list(first.values())


def _repetition(points: Points) -> list[str]:
    assert points.unique_tokens is not None
    epochs = points.tokens / points.unique_tokens
    if epochs.max() < 2:
        return [f"no run repeats its text twice (at most {epochs.max():.2g} epochs): R_D and R_N are not measured"]
    if epochs.min() > 1.5:
        return [
            f"no run sees its text once (at least {epochs.min():.2g} epochs): repetition and data cannot be told apart"
        ]
    return []


def _embeddings(law: Law, theta: Array, points: Points) -> list[str]:
    if points.params_non_embedding is not None:
        share = 1 - points.params_non_embedding / points.params
        row = int(np.argmax(share))
        if share[row] < _EMBEDDING_SHARE:
            return []
        better = _objective(law, theta, points, points.params_non_embedding) < _objective(
            law, theta, points, points.params
        )
        return [
            f"embedding parameters are mixed in: {100 * share[row]:.0f} % of params at line {points.lines[row]}; "
            f"the law fits {'better' if better else 'no better'} without them (--columns params=params_non_embedding)"
        ]
    smallest = points.params.min()
    whole = _objective(law, theta, points, points.params)
    # Vocabulary times width, where width goes with the cube root of the layers' weights.
    shares = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    without = [
        _objective(law, theta, points, points.params - share * smallest * (points.params / smallest) ** (1 / 3))
        for share in shares
    ]
    best = int(np.argmin(without))
    if best == len(shares) - 1:
        return []  # no share fits: the law itself bends away from these points
    if 2 * len(points) * math.log(max(whole, 1e-300) / max(without[best], 1e-300)) < _EMBEDDING_EVIDENCE:
        return []
    row = int(np.argmin(points.params))
    return [
        f"embedding parameters may be mixed in: the small sizes lie as if {100 * shares[best]:.0f} % of params at line "
        f"{points.lines[row]} were embeddings; give params without them and compare"
    ]


def _objective(law: Law, theta: Array, points: Points, params: Array) -> float:
    changed = replace(points, params=params)
    _, objective = minimise(
        lambda batch: law.predict(batch, changed), theta[None], np.log(points.loss), tolerance=1e-10
    )
    return float(objective[0])
