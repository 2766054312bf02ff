"""A table of runs (CSV) in, arrays out: what the laws are fitted to. A row that cannot be right is named, not used.

    points = read_points(Path("runs.csv"), needs=("params", "tokens", "loss"))

One row is one run, or one moment of a run. Columns: `params` (weights of the model), `tokens` (training tokens),
`flops` (training compute), `loss` (nats a token), `unique_tokens` (different tokens, where text was repeated),
`params_non_embedding`. Of params, tokens and flops one may be missing: it follows from C = 6 N D (Kaplan et al. 2020,
section 2.1).
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from talaria.errors import UsageError, UserError

Array = NDArray[np.float64]
Index = NDArray[np.int64]

KNOWN = ("params", "tokens", "flops", "loss", "unique_tokens", "params_non_embedding")
_SMALLEST = {
    "params": 1e3,
    "params_non_embedding": 1e2,
    "tokens": 1e4,
    "unique_tokens": 1e4,
    "flops": 1e9,
}
"""Below this a number is no whole count: it was written in thousands, millions or billions."""
_LARGEST_LOSS = 50.0
"""Nats a token; log of a vocabulary of 250,000 is 12.4, so more is no mean over tokens."""
_GAP = 100.0
"""A row that lies this many times away from all others of its column is looked at."""
_WIDE_GAP = 1e4
"""From here on its loss must lie beyond that of every other row."""
_RATIOS = (
    ("tokens", "params", 1e-2, 1e6),
    ("unique_tokens", "tokens", 1e-4, 1e4),
    ("params_non_embedding", "params", 1e-6, 1.0),
)
"""A column, another, and the least and the most that the first can be of the second: beyond, units differ."""
FLOPS_PER_PARAMETER_AND_TOKEN = 6.0


@dataclass(frozen=True)
class Points:
    """Runs as float64 arrays of one length n. `lines` are the rows' line numbers in the file, the header being line
    1."""

    params: Array
    tokens: Array
    flops: Array
    loss: Array
    lines: NDArray[np.int64]
    unique_tokens: Array | None = None
    params_non_embedding: Array | None = None

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Points:
        """The rows of `index`."""
        unique, layers = self.unique_tokens, self.params_non_embedding
        return Points(
            self.params[index],
            self.tokens[index],
            self.flops[index],
            self.loss[index],
            self.lines[index],
            None if unique is None else unique[index],
            None if layers is None else layers[index],
        )

    def without(self, lines: Sequence[int], place: str) -> Points:
        """All rows but those at `lines`; UsageError where there is no such row."""
        unknown = sorted(set(lines) - set(self.lines.tolist()))
        if unknown:
            raise UsageError(f"{place}: no row at line {unknown[0]} to leave out; the header is line 1")
        return self.take(~np.isin(self.lines, lines))


def read_columns(path: Path, names: Mapping[str, str], wanted: Sequence[str]) -> tuple[list[int], dict[str, list[str]]]:
    """Line numbers and the cells of every known column of a CSV (plain or .gz). `names` maps a known name to the
    file's own.

    Raises UserError where the file is missing, empty or lacks a column of `wanted`, UsageError for a wrong mapping.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a CSV with the columns {', '.join(wanted)}") from None
    except (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); save it as CSV in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a CSV file") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [cell.strip() for cell in next(reader, [])]
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error}); write one row a line") from None
    if not header or not rows:
        raise UserError(f"{path}: no rows below a header; the columns are {', '.join(wanted)}")
    places: dict[str, int] = {}
    for name, own in names.items():
        if name not in wanted:
            raise UsageError(f"--columns {name}={own}: {name} is no known column; known: {', '.join(wanted)}")
        if own not in header:
            raise UsageError(f"--columns {name}={own}: {path} has no column {own!r}; it has {', '.join(header)}")
        places[name] = header.index(own)
    for name in wanted:
        if name not in places and name in header:
            places[name] = header.index(name)
    cells_of: dict[str, list[str]] = {name: [] for name in places}
    for line, cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{path}:{line}: {len(cells)} cells where the header has {len(header)}; mend this row")
        for name, place in places.items():
            cells_of[name].append(cells[place].strip())
    return [line for line, _ in rows], cells_of


def read_points(path: Path, needs: Sequence[str], names: Mapping[str, str] | None = None) -> Points:
    """Read a table of runs for a law that `needs` these columns. UserError names file, line and value that cannot be
    right."""
    lines, cells = read_columns(path, names or {}, KNOWN)
    columns = {name: _numbers(path, name, lines, values) for name, values in cells.items()}
    derived = {"params": ("tokens", "flops"), "tokens": ("params", "flops"), "flops": ("params", "tokens")}
    missing = [
        name for name in needs if name not in columns and not all(x in columns for x in derived.get(name, ("?",)))
    ]
    if missing or "loss" not in columns:
        lacking = ", ".join(dict.fromkeys([*missing, *(["loss"] if "loss" not in columns else [])]))
        raise UserError(
            f"{path}:1: no column {lacking}; the law needs {', '.join(needs)}. A column of another name is given by "
            "--columns, e.g. --columns params='Model Size'"
        )
    _check_compute(path, lines, columns)
    given = set(columns)
    if "params" not in columns and {"tokens", "flops"} <= given:
        columns["params"] = columns["flops"] / FLOPS_PER_PARAMETER_AND_TOKEN / columns["tokens"]
    if "tokens" not in columns and {"params", "flops"} <= given:
        columns["tokens"] = columns["flops"] / FLOPS_PER_PARAMETER_AND_TOKEN / columns["params"]
    if "flops" not in columns and {"params", "tokens"} <= given:
        columns["flops"] = FLOPS_PER_PARAMETER_AND_TOKEN * columns["params"] * columns["tokens"]
    for name in ("params", "tokens", "flops"):
        if name in given:
            _check_lonely(path, name, lines, columns[name], columns["loss"])
    _check_ratios(path, lines, columns)
    nothing = np.full(len(lines), np.nan)
    return Points(
        params=columns.get("params", nothing),
        tokens=columns.get("tokens", nothing),
        flops=columns.get("flops", nothing),
        loss=columns["loss"],
        lines=np.array(lines),
        unique_tokens=columns.get("unique_tokens"),
        params_non_embedding=columns.get("params_non_embedding"),
    )


def _numbers(path: Path, name: str, lines: Sequence[int], cells: Sequence[str]) -> Array:
    values = []
    for line, cell in zip(lines, cells, strict=True):
        try:
            value = float(cell)
        except ValueError:
            raise UserError(f"{path}:{line}: {name} is {cell!r}, not a number; mend or drop this row") from None
        if not math.isfinite(value) or value <= 0:
            raise UserError(f"{path}:{line}: {name} is {cell}; it must be finite and above 0, so mend or drop this row")
        if value < _SMALLEST.get(name, 0.0):
            raise UserError(
                f"{path}:{line}: {name} is {cell}, too small for a count; write whole numbers, not thousands, "
                "millions or billions"
            )
        if name == "loss" and value > _LARGEST_LOSS:
            raise UserError(
                f"{path}:{line}: loss is {cell}; it must be the mean in nats a token, not a sum or a perplexity"
            )
        values.append(value)
    return np.array(values, dtype=np.float64)


def _check_compute(path: Path, lines: Sequence[int], columns: Mapping[str, Array]) -> None:
    """Where all three are given, C must be near 6 N D: attention and the head add to it, but not tenfold."""
    if not {"params", "tokens", "flops"} <= set(columns):
        return
    ratio = columns["flops"] / (FLOPS_PER_PARAMETER_AND_TOKEN * columns["params"] * columns["tokens"])
    row = int(np.argmax(np.abs(np.log(ratio))))
    if not 0.05 < ratio[row] < 20:
        raise UserError(
            f"{path}:{lines[row]}: flops is {ratio[row]:.2g} times 6 x params x tokens; one of the three is in "
            "another unit"
        )


def _check_ratios(path: Path, lines: Sequence[int], columns: Mapping[str, Array]) -> None:
    """Columns that count the same kind of thing, in units that cannot be each other's."""
    for name, of, least, most in _RATIOS:
        if name not in columns or of not in columns:
            continue
        ratio = columns[name] / columns[of]
        row = int(np.argmax(np.maximum(ratio / most, least / ratio)))
        if not least <= ratio[row] <= most:
            raise UserError(
                f"{path}:{lines[row]}: {name} is {ratio[row]:.2g} times {of}; one of the two is in another unit"
            )


def _check_lonely(path: Path, name: str, lines: Sequence[int], values: Array, loss: Array) -> None:
    """A row far from all others of its column whose loss does not follow: larger models and more text have less loss,
    so with a right value it would lie beyond the others' median, and from ten thousand times on beyond them all."""
    if len(values) < 3:
        return
    order = np.argsort(values)
    for row, neighbour, is_low in ((order[0], order[1], True), (order[-1], order[-2], False)):
        factor = values[neighbour] / values[row]
        factor = factor if is_low else 1 / factor
        rest = np.delete(loss, row)
        if factor >= _WIDE_GAP:
            follows = loss[row] > rest.max() if is_low else loss[row] < rest.min()
        else:
            follows = loss[row] > np.median(rest) if is_low else loss[row] < np.median(rest)
        if factor >= _GAP and not follows:
            raise UserError(
                f"{path}:{lines[row]}: {name} {values[row]:.4g} is {factor:.0e} times "
                f"{'below' if is_low else 'above'} the "
                f"next, and its loss {loss[row]:.4g} does not follow; is this row in another unit?"
            )
