"""One score over scale in, the kind of its curve out: flat, steady, sudden, U-shaped or inverse, with probabilities.

Every kind is a family of curves that are linear but for one or two numbers, which a grid runs through, so that
fitting is a projection and a thousand simulated curves are fitted at once. A jump is sudden where more than half of
the rise happens within one doubling of scale and smooth curves are rejected at 5 %; how large that test's statistic
grows on smooth curves is simulated from the best smooth one (a parametric bootstrap), so no table of critical values
has to hold for eight points.

Shapes: m scales, q columns of a basis, F candidates of a family, R simulated curves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from talaria.scaling.points import Array

KINDS = ("flat", "steady", "sudden", "U-shaped", "inverse")
FEWEST_SCALES = 5
LEVEL = 0.05
"""Of the test that rejects smooth curves."""
_SIMULATED = 500
_WINDOW = 1.0
"""Doublings of scale within which a sudden rise happens."""
_WIDEST_GAP = 2.0
"""Doublings between the scales before and after a jump; wider, nothing can be said of it."""
_SUDDEN_SHARE = 0.5
_SURE = 0.6
"""Probability from which on a kind is told."""


@dataclass(frozen=True)
class Series:
    """Scores of one task by one metric, ascending in scale, on the scale where they are compared: `y` has the
    standard errors `errors`, or unknown ones of one size (None). Larger is better."""

    x: Array
    """log2 of the scale."""
    y: Array
    errors: Array | None
    n_observations: float | None = None
    """Items behind all scores together; absent, the scores themselves are the observations."""


@dataclass(frozen=True)
class Curve:
    """What one metric says. `p_smooth` is how often smooth curves look as sudden as this one; `steepest` the share of
    the best smooth curve's rise within one doubling; `jump_at` log2 of the scale in the middle of the best jump."""

    kind: str
    probabilities: dict[str, float]
    p_smooth: float
    steepest: float
    jump_at: float
    next_y: tuple[float, float, float]
    reason: str


@dataclass(frozen=True)
class _Family:
    """Candidates of one kind of curve: `bases` (F, m, q), the same at the next scale `ahead` (F, q), and how many
    numbers a fit chooses."""

    name: str
    bases: Array
    ahead: Array
    n_free: int
    orthonormal: Array


def next_scale(x: Array) -> float:
    """log2 of the scale that would come next: one median step further."""
    return float(x[-1] + np.median(np.diff(x)))


def classify(series: Series, seed: int = 0) -> Curve:
    """The kind of one curve. Fewer than five scales, or kinds that fit alike, are undetermined."""
    x = series.x
    if len(x) < FEWEST_SCALES:
        nothing = dict.fromkeys(KINDS, 1 / len(KINDS))
        last = float(series.y[-1])
        reason = f"{len(x)} scales, where {FEWEST_SCALES} are the fewest"
        return Curve("undetermined", nothing, 1.0, math.nan, math.nan, (last, last, last), reason)
    gap = float(np.median(np.diff(x)))
    window = max(_WINDOW, gap)
    weights = np.ones(len(x)) if series.errors is None else 1 / series.errors
    families = _families(x, next_scale(x), window, weights)
    known = series.errors is not None
    middle, spread = (0.0, 1.0) if known else _scale_of(series.y)
    y = (series.y - middle) / spread * weights
    fits = {name: _fit(family, y) for name, family in families.items()}
    m = len(x)
    penalty = math.log(max(series.n_observations or m, m))  # Schwarz 1978
    spare = max(1, m - 4)
    lowest = min(rss for rss, _, _ in fits.values())
    dispersion = max(1.0, lowest / spare) if known else max(lowest / spare, 1e-12)
    scores = {name: rss / dispersion + families[name].n_free * penalty for name, (rss, _, _) in fits.items()}
    shapes = {name: _shape(name, families[name], fits[name], weights, x, window) for name in fits}
    best: dict[str, float] = {}
    for name, kind in shapes.items():
        if kind is not None:
            best[kind] = min(best.get(kind, math.inf), scores[name])
    floor = min(best.values())
    raw = {kind: math.exp(-0.5 * (best.get(kind, math.inf) - floor)) for kind in KINDS}
    total = sum(raw.values())
    probabilities = {kind: value / total for kind, value in raw.items()}
    p_smooth = _p_smooth(families, y, fits, dispersion, known, np.random.default_rng(seed))
    steepest = _steepest(families, fits, weights, x, window)
    position = fits["step"][1]
    jump_at = float((x[position] + x[position + 1]) / 2)
    kind, reason = _verdict(probabilities, shapes["step"], p_smooth, float(x[position + 1] - x[position]))
    ahead, low, high = (middle + spread * value for value in _predict(families, fits, scores, dispersion, seed))
    return Curve(kind, probabilities, p_smooth, steepest, jump_at, (ahead, low, high), reason)


def _scale_of(y: Array) -> tuple[float, float]:
    """Mean and standard deviation; scores that differ by rounding alone have none, and stay as they are."""
    middle, spread = float(np.mean(y)), float(np.std(y))
    return middle, spread if spread > 1e-12 * float(np.max(np.abs(y))) else 1.0


_WORDS = {
    "flat": "no trend beyond noise",
    "steady": "rises over its whole range",
    "inverse": "falls with scale",
    "U-shaped": "falls, then rises",
}


def _verdict(probabilities: dict[str, float], step: str | None, p_smooth: float, gap: float) -> tuple[str, str]:
    kind = max(probabilities, key=lambda name: probabilities[name])
    if step == "sudden" and p_smooth < LEVEL:
        if gap > _WIDEST_GAP:
            return "undetermined", f"scales lie {2**gap:.0f} times apart: too far to tell a jump from a steep rise"
        return "sudden", f"more than half of the rise within one step; smooth curves do so with p = {p_smooth:.3f}"
    if kind == "sudden":  # without the test it is only the best of the smooth ones
        rest = {name: value for name, value in probabilities.items() if name != "sudden"}
        kind = max(rest, key=lambda name: rest[name])
        return kind, f"looks like a jump, but smooth curves do so too (p = {p_smooth:.2f})"
    if probabilities[kind] < _SURE:
        order = sorted(probabilities, key=lambda name: -probabilities[name])
        return "undetermined", f"{order[0]} and {order[1]} fit alike"
    return kind, _WORDS[kind]


def _families(x: Array, ahead: float, window: float, weights: Array) -> dict[str, _Family]:
    every = np.append(x, ahead)
    one = np.ones_like(every)
    centred = (every - x.mean()) / max(float(np.ptp(x)), 1e-9)

    def family(name: str, columns: list[list[Array]], n_free: int) -> _Family:
        whole = np.stack([np.stack(candidate, axis=1) for candidate in columns])
        bases = whole[:, :-1] * weights[:, None]
        return _Family(name, bases, whole[:, -1], n_free, np.linalg.qr(bases)[0])

    steepest = 4 * math.atanh(_SUDDEN_SHARE) / window  # a logistic of this rate has half of its rise in one window
    logistic = [
        [one, 1 / (1 + np.exp(-rate * (every - middle)))]
        for rate in steepest * np.geomspace(0.1, 1.0, 9)
        for middle in np.linspace(x[0] - window, x[-1] + window, 4 * len(x))
    ]
    step = [[one, centred, np.clip((every - start) / window, 0, 1)] for start in x[:-1]]
    hinge = [[one, np.minimum(every - turn, 0), np.maximum(every - turn, 0)] for turn in x[1:-1]]
    cubic = [[one, centred, centred**2, centred**3]]
    return {
        "flat": family("flat", [[one]], 1),
        "linear": family("linear", [[one, centred]], 2),
        "logistic": family("logistic", logistic, 4),
        "cubic": family("cubic", cubic, 4),
        "hinge": family("hinge", hinge, 4),
        "step": family("step", step, 4),
    }


def _fit(family: _Family, y: Array) -> tuple[float, int, Array]:
    """Residual sum of squares of the best candidate, which it is, and the fitted (whitened) curve."""
    shares = np.einsum("fmq,m->fq", family.orthonormal, y)
    place = int(np.argmax((shares**2).sum(axis=1)))
    fitted = family.orthonormal[place] @ shares[place]
    return float(((y - fitted) ** 2).sum()), place, fitted


def _residuals(family: _Family, curves_Rm: Array) -> Array:
    """Residual sum of squares of the best candidate for each of R curves."""
    shares = np.einsum("fmq,rm->rfq", family.orthonormal, curves_Rm)
    left: Array = np.maximum((curves_Rm**2).sum(axis=1) - (shares**2).sum(axis=2).max(axis=1), 0.0)
    return left


_SMOOTH = ("linear", "logistic", "cubic")


def _p_smooth(
    families: dict[str, _Family],
    y: Array,
    fits: dict[str, tuple[float, int, Array]],
    dispersion: float,
    known: bool,
    generator: np.random.Generator,
) -> float:
    """How often curves simulated from the best smooth one gain as much by a jump as this one does."""
    name = min(_SMOOTH, key=lambda smooth: fits[smooth][0])
    centre = fits[name][2]
    noise = math.sqrt(dispersion) if known else math.sqrt(max(fits[name][0] / max(1, len(y) - 4), 1e-300))
    curves = centre + noise * generator.standard_normal((_SIMULATED, len(y)))

    def gain(curves_Rm: Array) -> Array:
        smooth = np.min([_residuals(families[one], curves_Rm) for one in _SMOOTH], axis=0)
        jump = _residuals(families["step"], curves_Rm)
        gained: Array = smooth - jump if known else np.log(np.maximum(smooth, 1e-12) / np.maximum(jump, 1e-12))
        return gained

    return float((1 + np.sum(gain(curves) >= gain(y[None])[0])) / (_SIMULATED + 1))


def _shape(
    name: str,
    family: _Family,
    fit: tuple[float, int, Array],
    weights: Array,
    x: Array,
    window: float,
) -> str | None:
    """The kind that a family's best curve is; None for one that is of no kind, as a hump."""
    if name == "flat":
        return "flat"
    curve = fit[2] / weights
    span = float(np.ptp(curve))
    rise = float(curve[-1] - curve[0])
    if span < 1e-12:
        return "flat"
    if name == "hinge":
        bottom = float(curve.min())
        if min(curve[0], curve[-1]) - bottom > 0.1 * span and curve.argmin() not in (0, len(curve) - 1):
            return "U-shaped"
    if name == "step":
        place = fit[1]
        up = np.interp([x[place], x[place] + max(window, float(x[place + 1] - x[place]))], x, curve)
        return "sudden" if min(float(up[1] - up[0]), rise) > _SUDDEN_SHARE * span else None
    if abs(rise) < 0.9 * span:  # not monotone
        return None
    return "steady" if rise > 0 else "inverse"


def _steepest(
    families: dict[str, _Family],
    fits: dict[str, tuple[float, int, Array]],
    weights: Array,
    x: Array,
    window: float,
) -> float:
    name = min(_SMOOTH, key=lambda smooth: fits[smooth][0] + 1e-9 * families[smooth].n_free)
    curve = fits[name][2] / weights
    fine = np.linspace(x[0], x[-1], 200)
    values = np.interp(fine, x, curve)
    later = np.interp(np.minimum(fine + window, x[-1]), x, curve)
    return float(np.max(later - values) / max(float(np.ptp(curve)), 1e-12))


def _predict(
    families: dict[str, _Family],
    fits: dict[str, tuple[float, int, Array]],
    scores: dict[str, float],
    dispersion: float,
    seed: int,
) -> tuple[float, float, float]:
    """Where the next scale would land: the families' own predictions, weighed by how well they fit. (median, low,
    high) at 80 %. Cubics are left out: they fit between points and run away beyond them."""
    names = [name for name in families if name != "cubic"]
    weights = np.exp(-0.5 * (np.array([scores[name] for name in names]) - min(scores[name] for name in names)))
    generator = np.random.default_rng(seed)
    draws = []
    for name, count in zip(names, generator.multinomial(4000, weights / weights.sum()), strict=True):
        family, place = families[name], fits[name][1]
        basis = family.bases[place]
        coefficients = np.linalg.lstsq(basis, fits[name][2], rcond=None)[0]
        at = family.ahead[place]
        variance = dispersion * float(at @ np.linalg.pinv(basis.T @ basis) @ at)
        draws.append(generator.normal(float(at @ coefficients), math.sqrt(max(variance, 0.0)), count))
    low, middle, high = np.quantile(np.concatenate(draws), [0.1, 0.5, 0.9])
    return float(middle), float(low), float(high)
