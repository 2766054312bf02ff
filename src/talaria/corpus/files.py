"""Paths and globs in, the files to read out; a file in, its decompressed bytes out, in chunks."""

from __future__ import annotations

import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from talaria.errors import UserError

TEXT = (".txt", ".md")
ROWS = (".jsonl",)
TABLES = (".parquet",)
COMPRESSED = (".gz", ".zst")
_CHUNK = 1 << 20


def kind_of(path: Path) -> str:
    """The file's type: its suffix in lower case, without that of the compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def find_files(paths: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """The readable files that `paths` name, folders and globs resolved in sorted order, and what was skipped and why.

    A file that is named itself must be of a known type; inside folders and globs others are skipped, and so is what is
    hidden. Raises UserError for a path that leads to nothing.
    """
    files: dict[Path, None] = {}  # keeps the order and drops what two paths both name
    skipped: dict[str, str] = {}

    def take(path: Path) -> None:
        if kind_of(path) in (*TEXT, *ROWS, *TABLES):
            files[path] = None
        else:
            skipped[str(path)] = f"file type {kind_of(path) or 'without suffix'!r} is not read"

    for name in paths:
        path = Path(name).expanduser()
        if path.is_dir():
            for found in sorted(path.rglob("*")):
                hidden = any(part.startswith(".") for part in found.relative_to(path).parts)
                if hidden and found.is_file():
                    skipped[str(found)] = "hidden"
                elif found.is_file():
                    take(found)
        elif path.is_file():
            if kind_of(path) not in (*TEXT, *ROWS, *TABLES):
                raise UserError(
                    f"{path}: file type is not read; use .txt, .md, .jsonl or .parquet, plain or with .gz or .zst"
                )
            files[path] = None
        elif matches := sorted(glob.glob(str(path), recursive=True)):
            for match in matches:
                if Path(match).is_file():
                    take(Path(match))
        else:
            raise UserError(f"{name}: no such file or folder; check corpus.paths")
    for name in (*map(str, files), *skipped):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{os.fsencode(name)!r}: the name of this file is not UTF-8; rename it") from None
    return list(files), skipped


def read_chunks(path: Path) -> Iterator[bytes]:
    """The file's bytes, decompressed, in chunks of about 1 MiB. Raises UserError for a damaged file."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".zst":
            with pa.OSFile(str(path), "rb") as raw, pa.CompressedInputStream(raw, "zstd") as stream:
                yield from _chunks(cast(BinaryIO, stream))
        elif suffix == ".gz":
            with gzip.open(path, "rb") as file:
                yield from _chunks(cast(BinaryIO, file))
        else:
            with open(path, "rb") as plain:
                yield from _chunks(plain)
    except EOFError:
        raise UserError(f"{path}: the file is truncated; fetch or make it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); fetch or make it again") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch or make it again") from None


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def read_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, byte offset in the decompressed file, line with its end) for every line."""
    rest, number, offset = b"", 0, 0
    for chunk in read_chunks(path):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield number, offset, line + b"\n"
            offset += len(line) + 1
    if rest:
        yield number + 1, offset, rest


class ZstdRows:
    """Writes JSON rows, one a line, into a .jsonl.zst file."""

    def __init__(self, path: Path) -> None:
        self._raw = pa.OSFile(str(path), "wb")
        self._stream = pa.CompressedOutputStream(self._raw, "zstd")

    def write(self, **row: str) -> None:
        self._stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        self._stream.close()
        self._raw.close()
