"""Two runs in, tables for the terminal out: settings that differ, loss at equal steps, results and their noise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from talaria.report.results import PROPORTIONS, ResultRow
from talaria.report.run_data import NULL_MODELS, RunData, read_run

_STEPS_SHOWN = 8


def compare_runs(a: Path, b: Path) -> Group:
    """Side by side of two run folders, to be printed by rich. Raises UserError where one is not a run."""
    runs = read_run(a), read_run(b)
    return Group(*_settings(*runs), *_losses(*runs), *_results(*runs))


def _settings(a: RunData, b: RunData) -> list[Table | Text]:
    flat_a, flat_b = _flat(a.settings), _flat(b.settings)
    table = _table("Settings that differ", "key", a, b)
    for key in sorted(flat_a.keys() | flat_b.keys()):
        if flat_a.get(key) != flat_b.get(key):
            _add(table, key, str(flat_a.get(key, "-")), str(flat_b.get(key, "-")))
    return [table] if table.row_count else [Text("Settings: no difference.")]


def _losses(a: RunData, b: RunData) -> list[Table | Text]:
    shown: list[Table | Text] = []
    for stage in (name for name in a.metrics if name in b.metrics):
        for key, name in (("train_loss", "training loss"), ("validation_loss", "validation loss")):
            of_a, of_b = _by_step(a, stage, key), _by_step(b, stage, key)
            equal = sorted(of_a.keys() & of_b.keys())
            if not equal:
                continue
            table = _table(f"{stage}: {name} at equal steps", "step", a, b)
            table.add_column("difference", justify="right")
            last = len(equal) - 1
            picked = sorted({round(i * last / (_STEPS_SHOWN - 1)) for i in range(_STEPS_SHOWN)}) if last else [0]
            for step in (equal[index] for index in picked):
                difference = of_b[step] - of_a[step]
                _add(table, f"{step:,}", f"{of_a[step]:.4f}", f"{of_b[step]:.4f}", f"{difference:+.4f}")
            shown.append(table)
    return shown or [Text("Loss: the runs have no step in common.")]


def _results(a: RunData, b: RunData) -> list[Table | Text]:
    of_b = {(row.model, row.task, row.metric, row.strategy): row for row in b.results}
    table = _table("Results", "task, metric, model", a, b)
    table.add_column("difference", justify="right")
    table.add_column("beyond the noise")
    for row in a.results:
        other = of_b.get((row.model, row.task, row.metric, row.strategy))
        if other is None or row.model in NULL_MODELS:
            continue
        name = f"{row.task}, {row.metric.replace('_', ' ')}, {row.model}"
        if row.task_version != other.task_version:
            versions = f"other questions ({row.task_version}, {other.task_version})"
            _add(table, name, _score(row), _score(other), "", versions)
            continue
        _add(table, name, _score(row), _score(other), f"{other.score - row.score:+.3f}", _verdict(a, b, row, other))
    if not table.row_count:
        return [Text("Results: the runs share no task, metric and model.")]
    note = "Brackets: 95 % intervals. Noise is that of the questions; another seed of the same run adds its own."
    return [table, Text(note, style="dim")]


def _verdict(a: RunData, b: RunData, row: ResultRow, other: ResultRow) -> str:
    """Exact McNemar test where both runs answered the same questions, else a z test at 5 %."""
    if row.metric == "accuracy" and (pairs := _paired(a, b, row)):
        gained = sum(new and not old for old, new in pairs)
        lost = sum(old and not new for old, new in pairs)
        p = sign_test(gained, lost)
        return f"{'yes' if p < 0.05 else 'no'} (p = {p:.2g}; {gained} gained, {lost} lost)"
    if row.stderr is None or other.stderr is None:
        return "unknown (no standard error)"
    spread = 1.96 * math.hypot(row.stderr, other.stderr)
    return "yes" if abs(other.score - row.score) > spread else f"no (within {spread:.3f})"


def sign_test(gained: int, lost: int) -> float:
    """Two-sided exact p-value that as uneven a split of gained + lost items is luck (McNemar 1947, exact form)."""
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / float(2**n))


def _paired(a: RunData, b: RunData, row: ResultRow) -> list[tuple[bool, bool]]:
    """(right in a, right in b) for each item of the task, if both runs kept answers to the same questions. The same id
    is not enough: worlds of two seeds number their questions alike."""
    old, new = (
        {
            (item["id"], item["prompt"], item["gold"]): bool(item["right"])
            for item in run.items.get(row.model, [])
            if item["task"] == row.task
        }
        for run in (a, b)
    )
    return [(right, new[key]) for key, right in old.items()] if old.keys() == new.keys() else []


def _score(row: ResultRow) -> str:
    interval = row.interval()
    if interval is None:
        return f"{row.score:.3f}"
    if row.metric in PROPORTIONS:
        return f"{100 * row.score:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return f"{row.score:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _table(title: str, first: str, a: RunData, b: RunData) -> Table:
    names = (a.name, b.name) if a.name != b.name else (str(a.folder), str(b.folder))
    table = Table(title=Text(title), title_justify="left")
    table.add_column(first)
    for name in names:
        table.add_column(Text(name), justify="right")
    return table


def _add(table: Table, *cells: str) -> None:
    """A row of plain text: square brackets in names and scores are not rich's markup."""
    table.add_row(*(Text(cell) for cell in cells))


def _by_step(run: RunData, stage: str, key: str) -> dict[int, float]:
    return {row["step"]: float(row[key]) for row in run.metrics[stage] if row.get(key) is not None}


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
