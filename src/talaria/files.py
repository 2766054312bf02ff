"""Files that are whole or not there, and what tells them apart: atomic writes, hashes, JSON.

    atomic_write(path, to_json(value)); read_json(path); sha256(path)

The names of the files by which a stage tells of itself stand here, since the hash of a folder leaves them out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from talaria.errors import UserError

MANIFEST = "manifest.json"
DONE = "done.json"
STARTED = "started.json"
OWN_FILES = frozenset({MANIFEST, DONE, STARTED})


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` so that `path` holds either the old content or the new one, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise placed(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it is synced and takes the place of `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_below(temporary)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file; of a folder, over its files' relative names and hashes, without manifest and done-mark."""
    if path.is_dir():
        lines = [f"{file.relative_to(path)} {sha256(file)}\n" for file in content_below(path)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file that talaria wrote; a damaged one is named."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; delete the folder {path.parent} to make it again") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); delete the folder {path.parent} to make it again") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file that talaria wrote; a damaged one is named. Only line feeds end a row: U+2028 and its like
    may stand inside a string."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: damaged ({error}); delete {path.parent} to make it again") from None
    return rows


def to_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def placed(error: OSError, path: Path) -> OSError:
    """The error with the place where it happened, which a failed write does not tell."""
    error.filename = error.filename or str(path)
    return error


def sync_below(folder: Path) -> None:
    """Every file and folder at and below `folder` is on the disk when this returns."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or path.is_dir():
            sync(path)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def content_below(folder: Path) -> list[Path]:
    return [path for path in files_below(folder) if path.name not in OWN_FILES]
