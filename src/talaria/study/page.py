"""The record and the points of a study in, study.html (one offline page) and study.md (the same tables as text) out."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from talaria.files import atomic_write
from talaria.report.chart import Series, line_chart, number
from talaria.report.style import STYLE
from talaria.study.findings import KINDS_SOUGHT
from talaria.study.points import Point, last_points, question
from talaria.study.tables import Table, appeared, at_chance, tables_of
from talaria.world.symbols import MOST_STEPS

_LEGENDS = ".legend { flex-wrap: wrap; gap: 2px 12px; } .key { white-space: nowrap; }"
_STEPS = [f"{k}-step" for k in range(1, MOST_STEPS + 1)]


def write_page(record: Mapping[str, Any], points: Sequence[Point], folder: Path) -> Path:
    """Write study.md and study.html into `folder`; returns the page's path."""
    tables = tables_of(record)
    atomic_write(folder / "study.md", _markdown(record, tables))
    page = folder / "study.html"
    atomic_write(page, _html(record, points, tables))
    return page


def headline(record: Mapping[str, Any]) -> list[str]:
    """What was looked for, and whether it appeared, a sentence each."""
    told = []
    for kind in KINDS_SOUGHT:
        over = {scale: appeared(record, scale, kind) for scale in ("params", "tokens")}
        words = [
            f"over {name}: {', '.join(over[scale]) or 'none'}"
            for scale, name in (("params", "size"), ("tokens", "training"))
        ]
        told.append(f"{kind.capitalize()}, {'; '.join(words)}.")
    if guessed := [name for scale in ("params", "tokens") for name in at_chance(record, scale)]:
        told.append(f"Rising, but to no better than a guess: {', '.join(dict.fromkeys(guessed))}.")
    curves = record["curves"]["params"].items()
    if false := [name for name, one in curves if one["exact_curve"] == "sudden" and one["kind"] != "sudden"]:
        told.append(f"Sudden in exact match over size and not in the smooth metrics: {', '.join(false)}.")
    return told


def _markdown(record: Mapping[str, Any], tables: Sequence[Table]) -> str:
    lines = ["# The study of curves", "", _scope(record), "", *(f"- {sentence}" for sentence in headline(record))]
    for table in tables:
        lines += ["", f"## {table.title}", "", table.note, "", _row(table.columns), _row(["---"] * len(table.columns))]
        lines += [_row(row) for row in table.rows]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} |"


def _scope(record: Mapping[str, Any]) -> str:
    sizes, seeds, settings = record["sizes"], record["seeds"], record["settings"]
    return (
        f"{len(sizes)} sizes of {number(sizes[0])} to {number(sizes[-1])} parameters, each trained on "
        f"{number(settings['tokens'])} tokens of a world of symbols; corpora: {', '.join(settings['corpora'])}; "
        f"seeds {', '.join(map(str, seeds))}. Intervals are 95 %, Student's t over seeds, unless they say otherwise."
    )


def _html(record: Mapping[str, Any], points: Sequence[Point], tables: Sequence[Table]) -> str:
    charts = _charts(points)
    first, *rest = tables
    parts = [
        "<h1>Three curves, looked for</h1>",
        f'<p class="lead">{escape(_scope(record))}</p>',
        f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in headline(record))}</ul>",
        _section(first),
    ]
    parts += [
        f'<section><h2>{title}</h2><p>{note}</p><div class="charts">{"".join(drawn)}</div></section>'
        for title, note, drawn in charts
    ]
    parts += [_section(table) for table in rest]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Study of curves</title><style>{STYLE}{_LEGENDS}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _section(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return (
        f"<section><h2>{escape(table.title)}</h2><p>{escape(table.note)}</p>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>'
    )


def _charts(points: Sequence[Point]) -> list[tuple[str, str, list[str]]]:
    """Means over seeds: over size, over training, without code, and against the loss."""
    whole = [point for point in points if point.corpus == "whole"]
    last = last_points(points)
    ends = [point for point in last if point.corpus == "whole"]
    largest = [point for point in whole if point.params == max(one.params for one in whole)]
    worked = [question(task, "worked") for task in _STEPS[1:]]
    direct = [question(task, "direct") for task in _STEPS]
    others = ["fact", "opposite", "hop direct", "hop worked"]
    negated = ["negated direct", "negated worked"]
    over_size: list[str] = []
    over_training: list[str] = []
    for at, name, drawn in ((ends, "parameters", over_size), (largest, "tokens", over_training)):
        for asked, title in ((others, "Facts and hops"), (worked, "Worked steps"), (direct, "Direct steps")):
            drawn.append(_chart(at, asked, "exact_match", f"{title}: exact match", name))
            drawn.append(_chart(at, asked, "answer_log_prob", f"{title}: log-probability", name, "nats a token"))
        drawn.append(_chart(at, negated, "choice_accuracy", "Distractor: right against the plain fact", name))
        drawn.append(_chart(at, negated, "answer_margin", "Distractor: margin over the plain fact", name, "nats"))
    sections = [
        (
            "Over size",
            "At the last checkpoint, means over seeds. What is sudden on the left is to be looked for on the right.",
            over_size,
        ),
        ("Over training", "The largest size, means over seeds.", over_training),
    ]
    against = [_against_loss(whole, name) for name in ("fact", "3-step worked", "2-step direct", "negated direct")]
    note = "One line a size, from its first checkpoint to its last, means over seeds. If loss told all, they were one."
    return [*sections, ("Against the held-out loss", note, against)]


def _chart(points: Sequence[Point], asked: Sequence[str], metric: str, title: str, axis: str, unit: str = "") -> str:
    scale: Callable[[Point], int] = (lambda one: one.params) if axis == "parameters" else (lambda one: one.tokens)
    series = [
        Series(
            name.removesuffix(" worked").removesuffix(" direct") if len(asked) > 4 else name,
            _means(points, scale, name, metric),
            dots=True,
        )
        for name in asked
    ]
    return line_chart(series, title, axis, unit, log_x=True)


def _means(points: Sequence[Point], scale: Callable[[Point], int], name: str, metric: str) -> list[tuple[float, float]]:
    by_scale: dict[int, list[float]] = defaultdict(list)
    for point in points:
        by_scale[scale(point)].append(point.scores[name][metric])
    return [(float(at), statistics.fmean(values)) for at, values in sorted(by_scale.items())]


def _against_loss(points: Sequence[Point], name: str) -> str:
    series = []
    for size in sorted({point.params for point in points}):
        by_tokens: dict[int, list[Point]] = defaultdict(list)
        for point in points:
            if point.params == size:
                by_tokens[point.tokens].append(point)
        line = [
            (statistics.fmean(one.loss for one in several), statistics.fmean(one.exact(name) for one in several))
            for _, several in sorted(by_tokens.items())
        ]
        series.append(Series(number(size), line, dots=True))
    return line_chart(series, f"{name}: exact match", "held-out loss, nats a token")
