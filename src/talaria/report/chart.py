"""Numbers in, inline SVG out. Colours come from the page's style sheet, so that a chart follows light and dark."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

WIDTH, HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 36
_MOST_POINTS, _MOST_HOVERS = 400, 80


@dataclass(frozen=True)
class Series:
    """One curve. `faint` draws it thin, for a noisy curve beside its summary; `dots` marks its points."""

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False
    dots: bool = False


def line_chart(
    series: Sequence[Series], title: str, x_label: str, unit: str = "", log_y: bool = False, log_x: bool = False
) -> str:
    """A `<figure>` with one axis pair, or an empty string where no series has a finite point.

    Points that are not finite (or not positive on a log axis) are left out. A curve of many points is drawn through
    the means of neighbours. Hovering over a curve shows its value.
    """
    kept = [(one, _thin(_drawable(one.points, log_x, log_y))) for one in series]
    kept = [(one, points) for one, points in kept if points]
    if not kept:
        return ""
    xs = [x for _, points in kept for x, _ in points]
    ys = [y for _, points in kept for _, y in points]
    x_low, x_high = min(xs), max(xs)
    if log_x:
        x_ticks = log_ticks(x_low, x_high)
        x_low, x_high = min(x_ticks[0], x_low), max(x_ticks[-1], x_high)
    else:
        x_low = 0.0 if 0 < x_low < 0.1 * x_high else x_low  # a run's first step is not worth an axis of its own
        x_high = x_high if x_high > x_low else x_low + 1
        x_ticks = linear_ticks(x_low, x_high, 5)
    y_ticks = log_ticks(min(ys), max(ys)) if log_y else linear_ticks(min(ys), max(ys))
    y_low, y_high = (min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys)))
    shape, x_shape = (math.log10 if log else float for log in (log_y, log_x))
    x_span = x_shape(x_high) - x_shape(x_low)
    span = shape(y_high) - shape(y_low)

    def x_of(x: float) -> float:
        return _LEFT + (x_shape(x) - x_shape(x_low)) / x_span * (WIDTH - _LEFT - _RIGHT)

    def y_of(y: float) -> float:
        return HEIGHT - _BOTTOM - (shape(y) - shape(y_low)) / span * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    bottom = HEIGHT - _BOTTOM
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            x = x_of(tick)
            parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{number(tick)}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    for index, (one, points) in enumerate(kept):
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="line c{index % 6}{" faint" if one.faint else ""}" points="{path}"/>')
        if one.dots or len(points) == 1:
            dots = "".join(f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.6"/>' for x, y in points)
            parts.append(f'<g class="dot c{index % 6}">{dots}</g>')
    for one, points in kept:
        for x, y in points[:: math.ceil(len(points) / _MOST_HOVERS)]:
            at = f"{x:,.0f}" if x == round(x) else f"{x:.3g}"
            told = escape(f"{one.name}: {y:.4g} {unit}".rstrip() + f" at {x_label} {at}")
            parts.append(
                f'<circle class="hit" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="7"><title>{told}</title></circle>'
            )
    parts.append("</svg>")
    heading = escape(title) + (f' <span class="unit">{escape(unit)}</span>' if unit else "")
    names = [f'<span class="key c{i % 6}">{escape(one.name)}</span>' for i, (one, _) in enumerate(kept)]
    legend = f'<div class="legend">{"".join(names)}</div>' if len(kept) > 1 else ""
    return f"<figure><figcaption>{heading}{legend}</figcaption>{''.join(parts)}</figure>"


def with_median(series: Series, width: int = 21) -> list[Series]:
    """A noisy curve and, where it is long enough to need one, its running median over `width` points."""
    if len(series.points) < 3 * width:
        return [series]
    half = width // 2
    middles = [
        (x, statistics.median(y for _, y in series.points[max(0, index - half) : index + half + 1]))
        for index, (x, _) in enumerate(series.points)
    ]
    return [replace(series, name="step", faint=True), Series(f"median of {width}", middles)]


def interval_bar(score: float, interval: tuple[float, float] | None, told: str, kind: str) -> str:
    """A share between 0 and 1 as a bar with its interval as a whisker; `kind` is a class of the style sheet."""
    low, high = interval or (score, score)
    whisker = (
        f'<line class="whisker" x1="{100 * low:.2f}" x2="{100 * high:.2f}" y1="6" y2="6"/>'
        if interval is not None
        else ""
    )
    return (
        f'<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" role="img" aria-label="{escape(told)}">'
        f"<title>{escape(told)}</title>"
        f'<rect class="rail" width="100" height="12"/>'
        f'<rect class="fill {kind}" width="{100 * score:.2f}" height="12"/>{whisker}</svg>'
    )


def linear_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """About `about` round numbers (1, 2 or 5 times a power of ten) that enclose low..high."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose low..high, with 2 and 5 between them where there are few; low must be positive."""
    low, high = (low / 2, high * 2) if high <= low else (low, high)
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if last - first <= 2:
        ticks = [factor * 10.0**power for power in range(first, last) for factor in (1, 2, 5)] + [10.0**last]
        start = max(tick for tick in ticks if tick <= low * (1 + 1e-9))
        end = min(tick for tick in ticks if tick >= high * (1 - 1e-9))
        return [tick for tick in ticks if start <= tick <= end]
    stride = math.ceil((last - first) / 6)
    return [10.0**power for power in range(first, last + stride, stride)]


def number(value: float) -> str:
    """A short number for an axis or a headline: 1200 -> 1.2k, 3000000 -> 3M."""
    size = abs(value)
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit * 0.9995:
            return f"{value / limit:.3g}{suffix}" if size < limit * 1e3 * 0.9995 else f"{value:.2e}"
    return f"{value:.3g}"


def _drawable(points: Sequence[tuple[float, float]], log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    return [(x, y) for x, y in finite if (x > 0 or not log_x) and (y > 0 or not log_y)]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / _MOST_POINTS)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
