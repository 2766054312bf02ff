"""A finished run in, what differs from its manifests out: the chain of hashes from raw text to weights and results.

for problem in verify(Path("runs/laptop")): print(problem)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from talaria.files import DONE, MANIFEST, OWN_FILES, files_below, read_json, sha256, to_json
from talaria.run import REVISION, done_mark, finished_stages, located


def verify(run_folder: Path) -> list[str]:
    """Re-hash every finished stage: inputs, outputs, done-marks and parent links. Returns the problems found."""
    return [problem for folder in finished_stages(run_folder) for problem in _verify_stage(run_folder, folder)]


def unchecked(run_folder: Path) -> list[str]:
    """Inputs of finished stages that lie elsewhere, so that nothing here can be hashed, with their revisions."""
    manifests = [read_json(folder / MANIFEST) for folder in finished_stages(run_folder)]
    inputs = [item for manifest in manifests for item in manifest["inputs"].items()]
    return [f"{name} at {told}" for name, told in inputs if told.startswith(REVISION)]


def _verify_stage(run_folder: Path, folder: Path) -> Iterator[str]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        done = json.loads((folder / DONE).read_bytes())
        key = {"settings_sha256": done["settings_sha256"], "inputs": done["inputs"]}
        expected = json.loads(done_mark(key, (folder / MANIFEST).read_bytes()))
        if "key_sha256" not in done:  # of an earlier version
            del expected["key_sha256"]
        if (folder / DONE).read_text() != to_json(expected):
            yield f"{folder / DONE}: does not match {MANIFEST}"
        if set(done["inputs"].values()) != set(manifest["inputs"].values()):  # two names may mean one file
            yield f"{folder / DONE}: its inputs are not those of {MANIFEST}"
        outputs, inputs, parents = manifest["outputs"], manifest["inputs"], manifest["parents"]
    except (ValueError, KeyError, AttributeError, OSError) as error:
        yield f"{folder}: manifest or done-mark damaged: {error!r}"
        return
    present = {str(file.relative_to(folder)): file for file in files_below(folder)}
    for name, digest in outputs.items():
        if name not in present:
            yield f"{folder / name}: missing"
        elif sha256(present[name]) != digest:
            yield f"{folder / name}: content changed since the stage wrote it"
    yield from (f"{present[n]}: not in {MANIFEST}" for n in sorted(present.keys() - outputs.keys() - OWN_FILES))
    if outputs.get("config.toml") != manifest["settings_sha256"] or done["settings_sha256"] != outputs["config.toml"]:
        yield f"{folder / 'config.toml'}: not the settings that made this stage"
    for name, digest in inputs.items():
        if digest.startswith(REVISION):
            continue
        path = located(run_folder, name)
        if not path.exists():
            yield f"{path}: missing (input of stage {folder.name})"
        elif sha256(path) != digest:
            yield f"{path}: changed since stage {folder.name} read it"
    for name, digest in parents.items():
        path = run_folder / name / MANIFEST
        if not path.exists() or sha256(path) != digest:
            yield f"{path}: not the manifest that stage {folder.name} was made from"
