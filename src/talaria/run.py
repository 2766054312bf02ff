"""The run folder: every stage's settings, inputs and outputs bound together by hashes.

    runs/<name>/<stage>/            a finished stage: config.toml, manifest.json, done.json and its outputs
    runs/<name>/<stage>.partial/    the same stage while it runs; a stage that was killed resumes from here

A stage is built in its partial folder and renamed when its done-mark is written, so a finished stage is whole and an
earlier result stays until the newer one replaces it. verify.py re-hashes the chain.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from talaria.config import Settings, to_toml
from talaria.errors import UserError
from talaria.files import (
    DONE,
    MANIFEST,
    OWN_FILES,
    STARTED,
    atomic_write,
    content_below,
    files_below,
    placed,
    read_json,
    sha256,
    sync,
    sync_below,
    to_json,
)

REVISION = "revision "
"""What begins an input's entry in a manifest where a revision, not a hash, tells its content."""
_LIBRARIES = ("torch", "numpy", "tokenizers", "safetensors", "pyarrow", "pydantic")
_IF_INSTALLED = ("openvino",)
"""What a stage may compute with, and does without otherwise."""


# ---------------------------------------------------------------------------------------- metrics


class Metrics:
    """Append-only JSONL, one row a call. With `resume_step`, rows after that step are dropped first, so that a
    resumed run leaves the file that an undisturbed one would have left (but for its clock times)."""

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        kept = b""
        if resume_step is not None and path.exists():
            kept = b"".join(line for line, row in _metric_rows(path) if row["step"] <= resume_step)
        atomic_write(path, kept)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the stage

    def write(self, step: int, **values: float | int | str | bool | None) -> None:
        row = {"step": step} | {
            key: float(f"{value:.8g}") if isinstance(value, float) else value
            for key, value in values.items()
            if value is not None
        }
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file; a last line cut by a kill is left out."""
    return [row for _, row in _metric_rows(path)]


def _metric_rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            int(row["step"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{path}:{number}: damaged ({error!r}); remove this line and run again") from None
        yield line + b"\n", row


# ------------------------------------------------------------------------------------------ stages


@contextlib.contextmanager
def lock(run_folder: Path) -> Iterator[None]:
    """Hold the run folder; a second run in the same folder is refused. The kernel frees it if the process dies."""
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        raise UserError(f"{run_folder}: cannot be made ({error.strerror}); choose another run.folder=FOLDER") from None
    with open(run_folder / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{run_folder}: another talaria (process {file.read().strip() or '?'}) is running in this folder; "
                "wait for it, or choose another with run.name=NAME"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@dataclass(frozen=True)
class Revision:
    """An input that lies elsewhere, told by its version there, as a data set by its commit; nothing is hashed."""

    name: str


@dataclass(frozen=True)
class Stage:
    """One stage of a run: what decides its result, and the work that makes it.

    `inputs` maps a name to a file, a folder or a revision; files inside a parent's folder are checked against its
    manifest.
    `work(folder)` writes every output below `folder`, which may hold what an earlier, killed try has written.
    """

    name: str
    settings: Settings
    inputs: Mapping[str, Path | Revision]
    parents: tuple[str, ...]
    work: Callable[[Path], None]


def run_stage(run_folder: Path, stage: Stage, force: bool = False) -> bool:
    """Run `stage` unless its done-mark says that this result exists. Returns whether it ran.

    `force` makes it again from the start; a forced try that was stopped goes on at the next call, forced or not.
    Call under `lock`. Raises UserError where an input is missing or no longer what its maker's manifest says.
    """
    folder, partial = run_folder / stage.name, run_folder / f"{stage.name}.partial"
    _recover(run_folder, stage.name)
    key = _key(run_folder, stage)
    begun = read_json(partial / STARTED) if (partial / STARTED).exists() else None
    was_forced = begun == key | {"forced": True}
    if not force and not was_forced and _is_current(folder, key):
        _relink(run_folder, folder)
        return False
    if partial.exists() and not was_forced and (force or begun != key | {"forced": False}):
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    atomic_write(partial / STARTED, to_json(key | {"forced": force or was_forced}))
    started = time.time()
    try:
        stage.work(partial)
    except OSError as error:
        raise placed(error, partial) from None
    for leftover in list(partial.rglob(".*.tmp")):  # of a save that was killed
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    atomic_write(partial / "config.toml", to_toml(stage.settings))
    manifest = {
        "stage": stage.name,
        "argv": [without_passwords(os.fsencode(argument).decode(errors="replace")) for argument in sys.argv],
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="milliseconds"),
        "seconds": round(time.time() - started, 3),
        "code_version": code_version(),
        "libraries": library_versions(),
        "settings_sha256": key["settings_sha256"],
        "inputs": {_shown(run_folder, name, stage.inputs[name]): digest for name, digest in key["inputs"].items()},
        "outputs": {
            str(file.relative_to(partial)): sha256(file)
            for file in files_below(partial)
            if file.parent != partial or file.name not in OWN_FILES
        },
        "parents": {name: sha256(run_folder / name / MANIFEST) for name in stage.parents},
    }
    atomic_write(partial / MANIFEST, to_json(manifest))
    sync_below(partial)
    atomic_write(partial / DONE, done_mark(key, (partial / MANIFEST).read_bytes()))
    _recover(run_folder, stage.name)
    _relink_children(run_folder, stage.name)
    return True


def finished_stages(run_folder: Path) -> list[Path]:
    """Folders of the run's finished stages; UserError where there is none."""
    stages = sorted(path.parent for path in run_folder.glob(f"*/{DONE}"))
    if not stages:
        raise UserError(f"{run_folder}: no finished stage here; give the folder of a run, e.g. runs/laptop")
    return stages


def is_finished(folder: Path) -> bool:
    """Whether `folder` is a finished stage."""
    return (folder / DONE).exists()


def is_current(run_folder: Path, stage: Stage) -> bool:
    """Whether the finished stage is this one, by its settings and inputs, so that `run_stage` would keep it."""
    return _is_current(run_folder / stage.name, _key(run_folder, stage))


def output_sha256(folder: Path) -> str:
    """One hash of all that the finished stage in `folder` wrote, by its manifest."""
    return hashlib.sha256(to_json(read_json(folder / MANIFEST)["outputs"]).encode()).hexdigest()


def _key(run_folder: Path, stage: Stage) -> dict[str, Any]:
    return {
        "settings_sha256": hashlib.sha256(to_toml(stage.settings).encode()).hexdigest(),
        "inputs": {name: _checked_hash(run_folder, stage, path) for name, path in sorted(stage.inputs.items())},
    }


def done_mark(key: Mapping[str, Any], manifest: bytes) -> str:
    """The done-mark of a stage; the key's own hash holds the names of inputs, of which the manifest knows the paths."""
    hashes = {"key_sha256": to_json(key).encode(), "manifest_sha256": manifest}
    return to_json({**key, **{name: hashlib.sha256(content).hexdigest() for name, content in hashes.items()}})


def _is_current(folder: Path, key: Mapping[str, Any]) -> bool:
    if not is_finished(folder):
        return False
    done = read_json(folder / DONE)
    manifest = read_json(folder / MANIFEST)
    same = {name: done.get(name) for name in key} == dict(key)
    return same and all((folder / name).exists() for name in manifest["outputs"])


def _relink(run_folder: Path, folder: Path) -> None:
    """A parent made again with the same output has a new manifest; point to it, since the inputs are the same.

    The done-mark is written first: after a kill between the two files it is that of the manifest to be, and the next
    call goes on. A done-mark that is neither this nor that of the present manifest is left for `verify` to tell.
    """
    old, manifest, done = (folder / MANIFEST).read_bytes(), read_json(folder / MANIFEST), read_json(folder / DONE)
    key = {"settings_sha256": done["settings_sha256"], "inputs": done["inputs"]}
    parents = {name: sha256(run_folder / name / MANIFEST) for name in manifest["parents"]}
    new = to_json(manifest | {"parents": parents})
    mark = done_mark(key, new.encode())
    if parents == manifest["parents"] or to_json(done) not in (done_mark(key, old), mark):
        return
    atomic_write(folder / DONE, mark)
    atomic_write(folder / MANIFEST, new)
    _relink_children(run_folder, folder.name)


def _relink_children(run_folder: Path, name: str) -> None:
    """Relink the finished stages made from stage `name`, wherever all that they read is still the same."""
    for child in sorted(path.parent for path in run_folder.glob(f"*/{DONE}")):
        manifest = read_json(child / MANIFEST)
        inputs = manifest["inputs"].items()
        read = {located(run_folder, name): digest for name, digest in inputs if not digest.startswith(REVISION)}
        whole = all((run_folder / parent / MANIFEST).exists() for parent in manifest["parents"])
        if name in manifest["parents"] and whole and all(p.exists() and sha256(p) == read[p] for p in read):
            _relink(run_folder, child)


def _recover(run_folder: Path, name: str) -> None:
    """Put a finished partial folder in its place; safe to repeat, so a kill in the middle of it loses nothing."""
    folder, partial, old = (run_folder / (name + suffix) for suffix in ("", ".partial", ".old"))
    if (partial / DONE).exists():
        (partial / STARTED).unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(partial, folder)
        sync(run_folder)
    elif old.exists() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)


def _checked_hash(run_folder: Path, stage: Stage, path: Path | Revision) -> str:
    if isinstance(path, Revision):
        return REVISION + path.name
    if not path.exists():
        raise UserError(f"{path}: missing, but stage {stage.name} reads it; check the recipe's paths")
    parent = next((name for name in stage.parents if path.is_relative_to(run_folder / name)), None)
    if parent is not None:
        outputs = read_json(run_folder / parent / MANIFEST)["outputs"]
        for file in content_below(path) if path.is_dir() else [path]:
            if sha256(file) != outputs.get(str(file.relative_to(run_folder / parent))):
                raise UserError(
                    f"{file}: not what stage {parent} wrote (hash mismatch); delete {run_folder / parent} and run again"
                )
    return sha256(path)


def _shown(run_folder: Path, name: str, path: Path | Revision) -> str:
    """Inside the run, relative to it, so that a run can be moved; outside, absolute; elsewhere, by name."""
    if isinstance(path, Revision):
        return name
    path, root = path.resolve(), run_folder.resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def located(run_folder: Path, name: str) -> Path:
    return Path(name) if os.path.isabs(name) else run_folder / name


def without_passwords(text: str) -> str:
    """`text` with *** for the passwords of the URLs in it, which nothing that is kept or shown may hold."""
    text = re.sub(r"(://[^/:@]*):[^@]*@", r"\1:***@", text)
    return re.sub(r"([?&]\w*password=)[^&\s]*", r"\1***", text)


@cache
def code_version() -> dict[str, str | None]:
    """Package version, a hash over the package's source files, and the git commit where there is one."""
    source = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(source.rglob("*.py")):
        digest.update(f"{file.relative_to(source)} {sha256(file)}\n".encode())
    git = (
        subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True, check=False)
        if shutil.which("git")
        else None
    )
    commit = git.stdout.strip() if git and git.returncode == 0 else None
    return {
        "package": importlib.metadata.version("talaria-lm"),
        "source_sha256": digest.hexdigest(),
        "git_commit": commit,
    }


def library_versions() -> dict[str, str]:
    found = [*_LIBRARIES, *(name for name in _IF_INSTALLED if importlib.util.find_spec(name) is not None)]
    return {name: importlib.metadata.version(name) for name in found} | {"python": platform.python_version()}
