"""A PostgreSQL server of a test's own, on a socket in a folder: no network, no password, gone with the test.

with open_postgresql(folder) as url: FeedbackStore(url)
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, _DEBIAN)]))


INITDB, PG_CTL = _program("initdb"), _program("pg_ctl")


@contextmanager
def open_postgresql(folder: Path) -> Iterator[str]:
    """The URL of an empty database. The server refuses to run as root, so root runs it as Debian's user postgres."""
    assert INITDB is not None and PG_CTL is not None
    prefix: list[str] = []
    folder.mkdir(parents=True)
    if os.getuid() == 0:
        prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(folder, "postgres", "postgres")
        for parent in folder.parents:  # pytest's folders are root's alone
            if parent.name.startswith("pytest-"):
                parent.chmod(0o711)
        folder.parent.chmod(0o711)
    data = folder / "data"
    quiet = {"check": True, "capture_output": True, "cwd": "/"}
    subprocess.run([*prefix, INITDB, "-D", str(data), "-U", "talaria", "--auth=trust", "--no-sync"], **quiet)  # type: ignore[call-overload]
    start = [*prefix, PG_CTL, "-D", str(data), "-w", "-l", str(folder / "log")]
    subprocess.run([*start, "-o", f"-c listen_addresses='' -c unix_socket_directories={folder}", "start"], **quiet)  # type: ignore[call-overload]
    try:
        yield f"postgresql://talaria@/postgres?host={folder}"
    finally:
        subprocess.run([*start, "-m", "immediate", "stop"], **quiet)  # type: ignore[call-overload]
