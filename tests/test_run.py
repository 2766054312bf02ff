"""The run folder: done-marks, manifests, verification, locks. Stages here are tiny functions."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from talaria.config import Settings
from talaria.errors import UserError
from talaria.run import (
    Metrics,
    Stage,
    atomic_write,
    code_version,
    is_finished,
    lock,
    read_metrics,
    run_stage,
    sha256,
    verify,
)


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


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic_write(path, "old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


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
