"""Kill a stage at random instants, also while it saves, and start it again; whatever it is, its end is the same."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from forked import forked

from talaria.files import sha256
from talaria.run import read_metrics
from talaria.train.checkpoint import checkpoints

_CLOCK = {"time", "tokens_per_second", "flops_per_second", "mfu", "hours_left"}


def assert_kills_change_nothing(
    name: str,
    work: Callable[[Path], None],
    files: Sequence[str],
    folder: Path,
    *,
    kills: int,
    pause: float,
    resumed: int = 1,
) -> None:
    """`work(run folder)` makes stage `name`. SIGKILL it `kills` times, each within `pause` seconds of a checkpoint or
    of its start, let every run that was begun come to its end, and compare `files` and metrics with an undisturbed one.

    `work` must be picklable. At least `resumed` different checkpoints were gone on from.
    """
    context = forked()

    def start(run: Path) -> BaseProcess:
        process = context.Process(target=work, args=(run,))
        process.start()
        return process

    def finish(run: Path) -> None:
        process = start(run)
        process.join(300)
        assert process.exitcode == 0

    undisturbed = folder / "undisturbed"
    finish(undisturbed)
    draw = random.Random(1)
    n_killed, resumed_from, runs = 0, set(), [folder / "killed-0"]
    while n_killed < kills:
        saved = runs[-1] / f"{name}.partial" / "checkpoints"
        before = checkpoints(saved)[-1:]
        process = start(runs[-1])
        if draw.random() < 0.7:  # else it may die before it has come to its first step
            while process.is_alive() and checkpoints(saved)[-1:] == before:
                time.sleep(0.001)
        time.sleep(draw.uniform(0.0, pause))
        process.kill()  # SIGKILL; nothing where it came to its end before
        process.join()
        if process.exitcode == 0:  # the next kills are a new run's
            runs.append(folder / f"killed-{len(runs)}")
            continue
        n_killed += 1
        resumed_from.update(path.name for path in checkpoints(saved)[-1:])
    for run in runs:
        finish(run)
        for file in files:
            assert sha256(run / name / file) == sha256(undisturbed / name / file), file
        assert _rows(run / name) == _rows(undisturbed / name)
    print(f"{name}: {n_killed} kills over {len(runs)} runs, gone on from {len(resumed_from)} different checkpoints")
    assert len(resumed_from) >= resumed, "the kills never met a run in the middle"


def _rows(stage: Path) -> list[dict[str, Any]]:
    """The rows of metrics without what a clock tells."""
    rows = read_metrics(stage / "metrics.jsonl")
    return [{key: v for key, v in row.items() if key not in _CLOCK and "seconds" not in key} for row in rows]
