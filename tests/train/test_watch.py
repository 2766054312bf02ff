"""A run held against its prediction: told in the metrics, warned of once a stretch, the same after a kill."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from talaria.train import meter
from talaria.train.meter import Meter
from talaria.train.settings import PlanSettings, Stretch
from talaria.train.step import StepResult
from talaria.train.watch import Watch

PLAN = PlanSettings(
    band=[Stretch(begin=0.2, end=0.5, low=2.0, high=3.0), Stretch(begin=0.5, end=1.0, low=1.0, high=2.0)]
)


def seen(losses: list[float], memory: dict[str, Any], first: int = 0, steps: int = 10) -> list[tuple[int, Any]]:
    watch = Watch(PLAN, memory, first / steps)
    found = [(step, watch.see((step + 1) / steps, losses[step])) for step in range(first, len(losses))]
    return [(step, told) for step, told in found if told is not None]


def test_a_stretch_is_judged_by_its_mean_when_it_ends() -> None:
    losses = [9.0, 9.0, 2.0, 4.0, 3.0, 1.0, 1.0, 2.0, 2.0, 4.0]
    assert seen(losses, {}) == [(4, (pytest.approx(3.0), 2.0, 3.0)), (9, (pytest.approx(2.0), 1.0, 2.0))]


def test_steps_that_miss_a_stretch_s_end_belong_to_it() -> None:
    """Seven steps: no share is 0.5, and the stretch ends with the first beyond it."""
    assert [step for step, _ in seen([1.0] * 7, {}, steps=7)] == [3, 6]


def test_a_resumed_run_judges_whole_stretches() -> None:
    losses = [9.0, 9.0, 2.0, 4.0, 3.0, 1.0, 1.0, 2.0, 2.0, 4.0]
    memory: dict[str, Any] = {}
    before = seen(losses[:4], memory)
    kept = json.loads(json.dumps(memory))
    assert before + seen(losses, kept, first=4) == seen(losses, {})


def test_a_band_that_comes_to_a_run_under_way_begins_with_a_stretch_that_is_all_to_come() -> None:
    """The bug: the next steps are judged as stretches that ended long ago, and warned of."""
    losses = [9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 1.0, 2.0, 2.0, 4.0]
    assert seen(losses, {}, first=3) == [(9, (pytest.approx(2.0), 1.0, 2.0))]
    assert seen(losses, {}, first=2)[0][0] == 4, "a stretch that begins here is whole"
    assert seen(losses, {}, first=6) == []
    other: dict[str, Any] = {}
    Watch(PlanSettings(band=PLAN.band[1:]), other, 0.3)
    assert [step for step, _ in seen(losses, other, first=3)] == [9], "another band's count is not this one's"


def test_what_is_left_is_told_beside_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "peak_flops", lambda dtype: 4e5)
    clock = iter([0.0, 10.0, 30.0])
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(clock))
    plan = PlanSettings(hours=0.5, hourly_cost=3.0)
    one = Meter("", 100, 0, flops_per_token=100, dtype=torch.float32, show=False, plan=plan)
    result = StepResult(2.5, 1000, 1000, 1.0, False, False, None)
    one.count(1, result)
    one.count(2, result)  # 30 seconds for two steps: 98 more take 1,470
    row = one.row(2, result)
    assert row["flops"] == 2 * 1000 * 100
    assert row["hours_left"] == pytest.approx(98 * 15 / 3600)
    assert row["planned_hours_left"] == pytest.approx(0.5 * 0.98)
    assert row["cost_left"] == pytest.approx(3.0 * 98 * 15 / 3600)
    assert row["planned_cost_left"] == pytest.approx(3.0 * 0.5 * 0.98)
    assert row["mfu"] == pytest.approx(1000 / 20 * 100 / 4e5)
    line = one.line(2, result)
    for words in (
        "loss 2.500",
        "50 tok/s",
        "1 % MFU",
        "2e+05 FLOPs",
        "24.5 min left",
        "planned 29.4 min",
        "1.23 to pay (planned 1.47)",
    ):
        assert words in line
