"""Keys that let a client in: shown once when made, kept only as SHA-256 hashes in a file that its owner alone may read.

key = make_key(Path("keys.json"), "laptop")       # print it; it cannot be read back
is_known(key, load_key_hashes(Path("keys.json")))
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from talaria.errors import UserError


def hash_key(key: str) -> str:
    """SHA-256 of a key, hexadecimal. Keys carry 256 random bits, so a slow password hash would add nothing."""
    return hashlib.sha256(key.encode()).hexdigest()


def make_key(path: Path, name: str) -> str:
    """Make a key, add its hash to the file at `path` (made with mode 0600 if need be) and return the key."""
    entries = _read(path) if path.exists() else []
    if any(entry["name"] == name for entry in entries):
        raise UserError(f"{path}: a key named {name!r} exists already; choose another name")
    key = f"tal-{secrets.token_urlsafe(32)}"
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    _write(path, [*entries, {"name": name, "sha256": hash_key(key), "created_at": created_at}])
    return key


def load_key_hashes(path: Path) -> list[str]:
    """The hashes in a key file."""
    if not path.exists():
        raise UserError(f"{path}: no such key file; make a key first")
    return [entry["sha256"] for entry in _read(path)]


def is_known(key: str, key_hashes: Sequence[str]) -> bool:
    """Whether the key's hash is among `key_hashes`; takes the same time wherever it stands."""
    hashed = hash_key(key)
    found = False
    for known in key_hashes:
        found |= hmac.compare_digest(hashed, known)
    return found


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["keys"]
        if all(isinstance(entry["name"], str) and len(bytes.fromhex(entry["sha256"])) == 32 for entry in entries):
            return list(entries)
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path}: not a key file; move it away and make a key again")


def _write(path: Path, entries: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp makes the file with mode 0600, so there is no moment at which others could read it.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"keys": entries}, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
