"""results.csv: one row a metric, written by every evaluation, read by the report, `talaria compare` and scaling.

It lives here because those readers import no room.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from talaria.errors import UserError
from talaria.files import atomic_write

WIN_SHARES = ("win_share", "win_share_length_controlled")
PROPORTIONS = ("accuracy", "choice_accuracy", *WIN_SHARES)
"""Metrics whose score is a share of n items, so that a binomial interval fits."""


@dataclass(frozen=True)
class ResultRow:
    """One metric of one model on one task; field order is column order.

    `params` counts weights, `tokens` and `flops` are what training has used so far, None where unknown or meaningless
    (a null baseline). `stderr` is the standard error of `score`; `n` counts the items behind it.
    """

    model: str
    params: int | None
    tokens: int | None
    flops: float | None
    seed: int | None
    step: int | None
    task: str
    task_version: str
    strategy: str
    shots: int
    metric: str
    score: float
    stderr: float | None
    n: int

    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the score: Wilson for a share, normal for a mean; None for a score known exactly."""
        if self.stderr is None:
            return None
        if self.metric in PROPORTIONS:
            return wilson_interval(self.score * self.n, self.n)
        return self.score - 1.96 * self.stderr, self.score + 1.96 * self.stderr


COLUMNS = tuple(field.name for field in fields(ResultRow))
_WHOLE = frozenset({"params", "tokens", "seed", "step", "shots", "n"})
_REAL = frozenset({"flops", "score", "stderr"})
_OPTIONAL = frozenset({"params", "tokens", "flops", "seed", "step", "stderr"})


def write_results(rows: Iterable[ResultRow], path: Path) -> None:
    """Write `rows` as results.csv at `path`; an unknown number is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow("" if value is None else value for value in asdict(row).values())
    atomic_write(path, buffer.getvalue())


def read_results(path: Path) -> list[ResultRow]:
    """Read results.csv; raises UserError naming file and line where it is not one."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            header = tuple(next(reader, ()))
            if header != COLUMNS:
                raise UserError(f"{path}:1: columns are not {', '.join(COLUMNS)}; write it with `talaria eval`")
            return [_row(path, reader.line_num, cells) for cells in reader if cells]
    except FileNotFoundError:
        raise UserError(f"{path}: no results here; `talaria eval` writes them") from None


def _row(path: Path, line: int, cells: list[str]) -> ResultRow:
    if len(cells) != len(COLUMNS):
        raise UserError(f"{path}:{line}: {len(cells)} cells where {len(COLUMNS)} belong; evaluate again")
    try:
        return ResultRow(**{name: _cell(name, cell) for name, cell in zip(COLUMNS, cells, strict=True)})  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"{path}:{line}: {error}; evaluate again") from None


def _cell(name: str, cell: str) -> str | int | float | None:
    if not cell and name in _OPTIONAL:
        return None
    if name in _WHOLE:
        return int(cell)
    return float(cell) if name in _REAL else cell


def wilson_interval(successes: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927): honest near 0 and 1, where p +- 1.96 stderr is not.

    `z` is the normal quantile: 1.96 gives 95 %. Raises ValueError unless 0 <= successes <= n and n > 0.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: need 0 <= successes <= n and n > 0")
    share, squared = successes / n, z * z
    centre = (share + squared / (2 * n)) / (1 + squared / n)
    half = z / (1 + squared / n) * math.sqrt(share * (1 - share) / n + squared / (4 * n * n))
    # At the ends the exact bounds are 0 and 1, which rounding would miss.
    return (centre - half if successes else 0.0), (centre + half if successes < n else 1.0)
