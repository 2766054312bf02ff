"""A whole study in seconds: arms, report, resumption after a kill, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from talaria.cli import app
from talaria.errors import UsageError, UserError
from talaria.report.results import read_results
from talaria.scaling.emergence import read_scores
from talaria.study.conduct import conduct
from talaria.study.settings import StudySettings

TINY = ["tokens=8192", "batch_tokens=128", "context=32", "items=10", "checkpoints=2", "depth=1", "names=10"]
SMALL = StudySettings(
    widths=[16, 24], seeds=1, tokens=8192, batch_tokens=128, context=32, items=10, checkpoints=2, depth=1, names=10
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder, told = tmp_path_factory.mktemp("study"), []
    conduct(SMALL, folder, told.append)
    return folder, told


def test_every_arm_and_the_report_are_there(done: tuple[Path, list[str]]) -> None:
    folder, told = done
    assert len(told) == 6 and "whole-16-seed-0" in told[0]
    record = json.loads((folder / "study.json").read_text())
    assert record["seeds"] == [0] and len(record["sizes"]) == 2
    # Two sizes are too few for a verdict, and the report says so.
    assert {one["kind"] for one in record["curves"]["params"].values()} == {"undetermined"}
    page = (folder / "study.html").read_text()
    assert "Which curves appeared" in page and "<svg" in page and "<script" not in page and "http" not in page
    assert "## k steps as p^n" in (folder / "study.md").read_text()
    assert len({score.scale for score in read_scores(folder / "whole.csv", "params")}) == 2


def test_scores_are_of_the_checkpoints_and_models_learn(done: tuple[Path, list[str]]) -> None:
    rows = read_results(done[0] / "whole-24-seed-0" / "results.csv")
    loss = {row.step: row.score for row in rows if row.metric == "loss"}
    assert list(loss) == [1, 64] and loss[64] < loss[1] - 0.5
    assert {row.tokens for row in rows} == {128, 8192}


def test_what_is_finished_is_kept_and_another_setting_makes_it_again(done: tuple[Path, list[str]]) -> None:
    told: list[str] = []
    conduct(SMALL, done[0], told.append)
    assert len(told) == 6 and all("is current" in line for line in told)
    with pytest.raises(UserError, match="no seed has all its arms"):
        conduct(SMALL.model_copy(update={"items": 11}), done[0], told.append, train=False)


def test_a_killed_study_goes_on_and_ends_as_an_undisturbed_one(done: tuple[Path, list[str]], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "talaria", "study", *TINY, "--sizes", "16,24", "--seeds", "1", "--out"]
    child = subprocess.Popen([*command, str(tmp_path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "no-code-16-seed-0.partial").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert (tmp_path / "whole-16-seed-0" / "done.json").exists() and not (tmp_path / "study.json").exists()
    told: list[str] = []
    conduct(SMALL, tmp_path, told.append)
    assert "is current" in told[0] and "is current" not in told[-1]
    for name in ("whole.csv", "no-code.csv", "no-steps.csv", "study.json"):
        assert (tmp_path / name).read_bytes() == (done[0] / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "16"], "two or more"),
        (["--sizes", "16,17"], "multiple of 8"),
        (["--sizes", "16,wide"], "--sizes 16,wide"),
        (["--seeds", "0"], "seeds"),
        (["tokens=100"], "fewer than 64 batches"),
        (["batch_tokens=100"], "not a multiple of context"),
        (["corpora=[no-code]"], "whole among them"),
        (["corpora=[whole,prose]"], "corpora"),
        (["widhts=[16,24]"], "did you mean 'widths'"),
    ],
)
def test_bad_settings_are_told_before_anything_runs(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["study", *arguments, "--out", str(tmp_path / "study")])
    assert isinstance(result.exception, UsageError) and message in str(result.exception)
    assert not (tmp_path / "study").exists()


def test_a_damaged_arm_is_named(done: tuple[Path, list[str]], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "study"
    shutil.copytree(done[0], folder)
    broken = folder / "no-code-16-seed-0" / "results.csv"
    broken.write_text(broken.read_text().replace("exact_match,", "exact_match,x", 1))
    with pytest.raises(UserError, match=r"no-code-16-seed-0/results\.csv:\d+"):
        conduct(SMALL, folder, print)
