"""The run folder: done-marks, manifests, verification, locks. Stages here are tiny functions."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from talaria.config import Settings
from talaria.errors import UserError
from talaria.files import atomic_write, sha256
from talaria.run import Metrics, Revision, Stage, code_version, is_finished, lock, read_metrics, run_stage
from talaria.verify import unchecked, verify


class Number(Settings):
    value: int = 1


def copy_stage(raw: Path, value: int = 1) -> Stage:
    def work(folder: Path) -> None:
        atomic_write(folder / "out" / "text", raw.read_text() * value)

    return Stage("first", Number(value=value), {"raw": raw}, (), work)


def length_stage(run: Path) -> Stage:
    def work(folder: Path) -> None:
        atomic_write(folder / "length", str(len((run / "first" / "out" / "text").read_text())))

    return Stage("second", Number(), {"text": run / "first" / "out"}, ("first",), work)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "raw.txt"
    path.write_text("abc")
    return path


@pytest.fixture
def run(tmp_path: Path, raw: Path) -> Path:
    folder = tmp_path / "runs" / "r"
    with lock(folder):
        assert run_stage(folder, copy_stage(raw))
        assert run_stage(folder, length_stage(folder))
    return folder


def test_a_finished_stage_is_not_run_again(run: Path, raw: Path) -> None:
    before = (run / "first" / "manifest.json").read_bytes()
    assert not run_stage(run, copy_stage(raw))
    assert not run_stage(run, length_stage(run))
    assert (run / "first" / "manifest.json").read_bytes() == before


def test_a_changed_setting_reruns_what_it_touches(run: Path, raw: Path) -> None:
    assert run_stage(run, copy_stage(raw, value=2))
    assert run_stage(run, length_stage(run))
    assert (run / "second" / "length").read_text() == "6"


def test_a_stage_rerun_with_the_same_output_leaves_the_next_one_current(run: Path, raw: Path) -> None:
    manifest = run / "first" / "manifest.json"
    before = manifest.read_bytes()
    assert run_stage(run, copy_stage(raw), force=True)
    assert manifest.read_bytes() != before, "it names another time"
    assert verify(run) == [], "the next stage already names the new manifest"
    assert not run_stage(run, length_stage(run))
    assert verify(run) == []


def test_a_changed_input_reruns_the_stage(run: Path, raw: Path) -> None:
    raw.write_text("abcd")
    assert run_stage(run, copy_stage(raw))
    assert run_stage(run, length_stage(run))
    assert (run / "second" / "length").read_text() == "4"


def test_a_stage_that_fails_leaves_the_earlier_result(run: Path, raw: Path) -> None:
    def fail(folder: Path) -> None:
        atomic_write(folder / "out" / "text", "half")
        raise UserError("no")

    with pytest.raises(UserError):
        run_stage(run, Stage("first", Number(value=9), {"raw": raw}, (), fail))
    assert is_finished(run / "first")
    assert (run / "first" / "out" / "text").read_text() == "abc"
    assert verify(run) == []


def test_a_killed_stage_finds_what_it_had_written_unless_its_settings_changed(run: Path, raw: Path) -> None:
    seen: list[bool] = []

    def work(folder: Path) -> None:
        seen.append((folder / "checkpoint").exists())
        atomic_write(folder / "checkpoint", "1")
        if len(seen) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(run, Stage("third", Number(value=1), {}, (), work))
    run_stage(run, Stage("third", Number(value=1), {}, (), work))
    run_stage(run, Stage("third", Number(value=2), {}, (), work))
    assert seen == [False, True, False]


def kill_at(monkeypatch: pytest.MonkeyPatch, *parts: str) -> None:
    """The process ends where the file whose path ends in `parts` is about to be written."""

    def write(path: Path, data: bytes | str) -> None:
        if path.parts[-len(parts) :] == parts:
            raise KeyboardInterrupt
        atomic_write(path, data)

    monkeypatch.setattr("talaria.run.atomic_write", write)


def slow_stage(seen: list[bool], interrupted: int = 0) -> Stage:
    """Notes whether it found an earlier try's work; the first `interrupted` tries are stopped."""

    def work(folder: Path) -> None:
        seen.append((folder / "checkpoint").exists())
        atomic_write(folder / "checkpoint", "1")
        if len(seen) <= interrupted:
            raise KeyboardInterrupt

    return Stage("third", Number(), {}, (), work)


@pytest.mark.parametrize("file", ["config.toml", "manifest.json", "done.json"])
def test_a_kill_just_before_the_done_mark_keeps_the_work(run: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    seen: list[bool] = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, "third.partial", file)
        run_stage(run, slow_stage(seen))
    assert run_stage(run, slow_stage(seen))
    assert seen == [False, True]
    assert sorted(path.name for path in (run / "third").iterdir()) == [
        "checkpoint", "config.toml", "done.json", "manifest.json",
    ]  # fmt: skip
    assert json.loads((run / "third" / "manifest.json").read_text())["outputs"].keys() == {"checkpoint", "config.toml"}
    assert verify(run) == []


def test_a_kill_between_done_mark_and_renaming_leaves_a_run_that_verifies(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("talaria.run._recover", lambda *_: None)
        run_stage(run, slow_stage([]))
    assert (run / "third.partial" / "started.json").exists() and verify(run) == []
    assert not run_stage(run, slow_stage([]))
    assert verify(run) == []


@pytest.mark.parametrize("force", [True, False])
def test_a_forced_stage_that_was_stopped_goes_on_with_and_without_force(run: Path, force: bool) -> None:
    seen: list[bool] = []
    run_stage(run, slow_stage([]))
    with pytest.raises(KeyboardInterrupt):
        run_stage(run, slow_stage(seen, interrupted=1), force=True)
    assert run_stage(run, slow_stage(seen), force=force)
    assert not run_stage(run, slow_stage(seen))
    assert run_stage(run, slow_stage(seen), force=True)
    assert seen == [False, True, False]


def test_force_starts_anew_where_an_unforced_try_was_stopped(run: Path) -> None:
    seen: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        run_stage(run, slow_stage(seen, interrupted=1))
    assert run_stage(run, slow_stage(seen), force=True)
    assert seen == [False, False]


def test_what_a_killed_save_left_is_no_output(run: Path) -> None:
    def work(folder: Path) -> None:
        atomic_write(folder / "checkpoints" / ".step-1.77.tmp" / "weights", "half")
        atomic_write(folder / ".metrics.jsonl.77.tmp", "half")
        atomic_write(folder / "weights", "whole")

    run_stage(run, Stage("third", Number(), {}, (), work))
    assert json.loads((run / "third" / "manifest.json").read_text())["outputs"].keys() == {"weights", "config.toml"}
    assert verify(run) == []


def test_every_output_is_on_the_disk_before_the_done_mark(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), run / "third.partial"))
        real(descriptor)

    def work(folder: Path) -> None:
        (folder / "out").mkdir()
        (folder / "out" / "weights").write_text("not synced by its writer")

    monkeypatch.setattr("os.fsync", fsync)
    run_stage(run, Stage("third", Number(), {}, (), work))
    [mark] = [place for place, name in enumerate(synced) if name.startswith(".done.json.")]
    assert {"out/weights", "out"} <= set(synced[:mark])


def test_a_kill_between_the_two_files_of_a_relink_is_mended_by_the_next_run(
    run: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def write(path: Path, data: bytes | str) -> None:
        if path.parent.name == "second":
            written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt
        atomic_write(path, data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("talaria.run.atomic_write", write)
        run_stage(run, copy_stage(raw), force=True)
    assert verify(run)
    assert not run_stage(run, length_stage(run))
    assert verify(run) == []


def test_relinking_does_not_bless_a_changed_manifest(run: Path, raw: Path) -> None:
    path = run / "second" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(path.read_text().replace(manifest["libraries"]["torch"], "9.9.9"))
    assert run_stage(run, copy_stage(raw), force=True)
    assert not run_stage(run, length_stage(run))
    assert any("does not match" in problem for problem in verify(run))


def test_a_parent_without_manifest_is_named(run: Path) -> None:
    (run / "first" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"first/manifest\.json: missing; delete"):
        run_stage(run, length_stage(run))


def test_a_file_where_the_run_folder_should_be_is_named(raw: Path) -> None:
    for folder in (raw, raw / "r", raw.parent / ("n" * 300)):
        with pytest.raises(UserError, match=r"cannot be made.*run\.folder"), lock(folder):
            pass


@pytest.mark.parametrize("instant", ["old moved away", "new in place"])
def test_a_kill_while_a_new_result_replaces_the_old_loses_nothing(run: Path, raw: Path, instant: str) -> None:
    folder, partial, old = run / "first", run / "first.partial", run / "first.old"
    if instant == "old moved away":
        folder.rename(old)
        old_text = (old / "out" / "text").read_text()
        assert not run_stage(run, copy_stage(raw))
        assert (folder / "out" / "text").read_text() == old_text
    else:
        folder.rename(partial)
        assert not run_stage(run, copy_stage(raw))
    assert is_finished(folder)
    assert not partial.exists() and not old.exists()
    assert verify(run) == []


def test_a_damaged_output_of_an_earlier_stage_is_refused(run: Path, raw: Path) -> None:
    (run / "first" / "out" / "text").write_text("abd")
    with pytest.raises(UserError, match="hash mismatch"):
        run_stage(run, length_stage(run))


def test_one_file_given_twice_verifies(run: Path, raw: Path) -> None:
    run_stage(run, Stage("twice", Number(), {"first": raw, "second": raw}, (), lambda folder: None))
    assert verify(run) == []


def test_a_revision_is_bound_to_the_stage_and_named_as_unchecked(run: Path) -> None:
    def stage(commit: str) -> Stage:
        return Stage("third", Number(), {"hf:data": Revision(commit)}, ("first",), lambda folder: None)

    assert run_stage(run, stage("a1"))
    assert not run_stage(run, stage("a1"))
    assert run_stage(run, stage("b2")), "another revision, another result"
    assert verify(run) == []
    assert unchecked(run) == ["hf:data at revision b2"]
    path = run / "third" / "done.json"
    path.write_text(path.read_text().replace("b2", "b3"))
    assert verify(run), "the revision is part of the chain"


def test_a_stage_that_stands_on_a_revision_is_relinked(run: Path, raw: Path) -> None:
    text = run / "first" / "out"
    run_stage(run, Stage("third", Number(), {"d": Revision("a1"), "t": text}, ("first",), lambda folder: None))
    assert run_stage(run, copy_stage(raw), force=True)
    assert verify(run) == []


def test_verify_passes_on_an_untouched_run(run: Path) -> None:
    assert verify(run) == []


def test_verify_fails_on_a_one_byte_change_anywhere_in_the_chain(run: Path, raw: Path) -> None:
    files = [raw, *(path for path in run.rglob("*") if path.is_file() and path.name != ".lock")]
    assert len(files) == 9
    for path in files:
        original = path.read_bytes()
        for place in {0, len(original) // 2, len(original) - 1}:
            changed = bytearray(original)
            changed[place] ^= 1
            path.write_bytes(bytes(changed))
            assert verify(run), f"{path} byte {place}"
        path.write_bytes(original)
        assert verify(run) == []


def test_verify_sees_a_missing_and_an_added_file(run: Path) -> None:
    (run / "second" / "extra").write_text("x")
    assert any("not in manifest" in problem for problem in verify(run))
    (run / "second" / "extra").unlink()
    (run / "second" / "length").unlink()
    assert any("missing" in problem for problem in verify(run))


def test_verify_sees_a_parent_that_was_made_again(run: Path, raw: Path) -> None:
    raw.write_text("xyz")
    run_stage(run, copy_stage(raw))
    assert any("not the manifest that stage second was made from" in problem for problem in verify(run))


def test_a_run_can_be_moved(run: Path, tmp_path: Path) -> None:
    assert verify(run.rename(tmp_path / "moved")) == []


def test_the_manifest_says_what_made_it(run: Path) -> None:
    manifest = json.loads((run / "second" / "manifest.json").read_text())
    assert manifest["parents"] == {"first": sha256(run / "first" / "manifest.json")}
    assert manifest["outputs"]["length"] == sha256(run / "second" / "length")
    assert manifest["code_version"] == code_version()
    assert manifest["libraries"]["torch"]


def _hold(folder: Path, held: Callable[[], None]) -> None:
    with lock(folder):
        held()
        time.sleep(30)


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    event = context.Event()
    other = context.Process(target=_hold, args=(tmp_path, event.set))
    other.start()
    try:
        assert event.wait(20)
        with pytest.raises(UserError, match=rf"process {other.pid}.*run.name"), lock(tmp_path):
            pass
    finally:
        other.kill()
        other.join()
    with lock(tmp_path):
        pass


def test_metrics_after_a_resume_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in (1, 2, 3):
        metrics.write(step, train_loss=float(step))
    metrics.close()
    with open(path, "a") as file:
        file.write('{"step": 4, "train_lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    metrics = Metrics(path, resume_step=2)
    metrics.write(3, train_loss=3.0)
    metrics.close()
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


@pytest.mark.parametrize("line", ["{", '{"train_loss": 1}', "[1]", '{"step": "x"}', "[" * 100_000, "\0\0"])
def test_a_damaged_metrics_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: damaged"):
        read_metrics(path)
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: damaged"):
        Metrics(path, resume_step=2)
