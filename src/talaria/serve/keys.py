"""Keys that let a client in: shown once when made, kept only as SHA-256 hashes in a file that its owner alone may read.

key = make_key(path, "laptop")                # print it; it cannot be read back
Keyring(path).name_of(key)                    # "laptop", until revoke_key(path, "laptop")
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from talaria.errors import UserError

logger = logging.getLogger("talaria.serve")


@dataclass(frozen=True)
class Key:
    """What is kept of a key: the name of whom it is for, its hash and when it was made (ISO 8601, UTC)."""

    name: str
    sha256: str
    created_at: str


def hash_key(key: str) -> str:
    """SHA-256 of a key, hexadecimal. Keys carry 256 random bits, so a slow password hash would add nothing."""
    return hashlib.sha256(key.encode()).hexdigest()


def make_key(path: Path, name: str) -> str:
    """Make a key, add its hash to the file at `path` (made with mode 0600 if need be) and return the key."""
    if not name.strip() or not name.isprintable() or len(name) > 100:
        raise UserError(f"key name {name!r}: write a short name of whom the key is for, e.g. alice-laptop")
    with _changing(path):
        keys = read_keys(path) if path.exists() else []
        if any(key.name == name for key in keys):
            raise UserError(f"{path}: a key named {name!r} exists already; choose another name, or revoke it first")
        secret = f"tal-{secrets.token_urlsafe(32)}"
        _write(path, [*keys, Key(name, hash_key(secret), datetime.now(UTC).isoformat(timespec="seconds"))])
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Strike a key from the file; a server that runs on it refuses the key from its next request on."""
    with _changing(path):
        keys = read_keys(path)
        kept = [key for key in keys if key.name != name]
        if len(kept) == len(keys):
            known = ", ".join(repr(key.name) for key in keys) or "none"
            raise UserError(f"{path}: no key named {name!r}; its keys are: {known}")
        _write(path, kept)


def read_keys(path: Path) -> list[Key]:
    """The keys of a file, in the order in which they were made."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["keys"]
        keys = [Key(**entry) for entry in entries]
        if all(isinstance(key.name, str) and len(bytes.fromhex(key.sha256)) == 32 for key in keys):
            return keys
    except FileNotFoundError:
        raise UserError(f"{path}: no such key file; make a key first: talaria keys add NAME --keys {path}") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path}: not a key file; move it away and make a key again: talaria keys add NAME")


class Keyring:
    """The keys of a file as it is now: read anew whenever the file has changed, so that revoking needs no restart."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where the file is missing, broken or without a key."""
        self.path = path
        self._version = self._file_version()
        self._keys = read_keys(path)
        if not self._keys:
            raise UserError(f"{path}: holds no key; make one: talaria keys add NAME --keys {path}")

    def name_of(self, secret: str) -> str | None:
        """Whom the key is for, or None if it is not known; takes the same time wherever it stands."""
        self._refresh()
        hashed = hash_key(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(hashed, key.sha256):
                found = key.name
        return found

    def _refresh(self) -> None:
        version = self._file_version()
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = read_keys(self.path)
        except (UserError, OSError) as error:
            # Closed, not open: with a file that cannot be read nobody can be told from a revoked client.
            self._keys = []
            logger.error("%s; no key is accepted until it is mended", error)

    def _file_version(self) -> tuple[int, int, int] | None:
        """Changes whenever the file is replaced, also within one tick of the clock: the new file is another inode."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[None]:
    """Hold the file against a second command, which would write back what it read before this one's change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, keys: list[Key]) -> None:
    # mkstemp makes the file with mode 0600, so there is no moment at which others could read it.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"keys": [asdict(key) for key in keys]}, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
