"""Findings against planted curves: what is put into the rows comes out, and what is not there is not found."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from talaria.report.results import ResultRow
from talaria.study.findings import against_loss, curves_over, findings
from talaria.study.page import headline
from talaria.study.points import points_of, question, questions
from talaria.study.prerequisites import compositions, edges, parts_of
from talaria.study.settings import StudySettings
from talaria.study.stopping import stopped_early
from talaria.study.tables import tables_of
from talaria.world.symbols import TASKS, can_be_worked

SIZES = [3**k * 10_000 for k in range(7)]
TOKENS = [2**k * 20_000 for k in range(6)]
SEEDS = (0, 1, 2)
Skill = Callable[[float, float, float], float]
"""Of log2 of size over the smallest, log2 of tokens over the fewest, and the loss: a single step's success."""


def planted(skill: Skill, code_gain: float = 0.0, step_scale: float = 1.0) -> list[ResultRow]:
    """Rows in which worked steps are p^k, direct ones chance, and every seed is off by a little of its own."""
    rows = []
    for seed in SEEDS:
        for corpus in ("whole", "no-code", "no-steps"):
            for x, params in enumerate(SIZES):
                for t, tokens in enumerate(TOKENS):
                    loss = 2.5 - 0.15 * x - 0.1 * t + 0.004 * seed
                    p = min(0.99, max(0.02, skill(x, t, loss) + 0.004 * (seed - 1)))
                    p_here = min(0.99, p + code_gain) if corpus != "no-code" else p
                    shared = {"model": f"{corpus}-{x}", "params": params, "tokens": tokens, "seed": seed, "step": t}
                    flops = 6.0 * params * tokens

                    def row(
                        task: str, way: str, metric: str, score: float, shared: dict = shared, flops: float = flops
                    ) -> ResultRow:
                        told = {"task": task, "task_version": "1", "strategy": way, "shots": 0, "metric": metric}
                        return ResultRow(**shared, **told, flops=flops, score=score, stderr=0.01, n=400)

                    rows.append(row("held-out text", "", "loss", loss))
                    for task in TASKS:
                        for way in ("direct", "worked") if can_be_worked(task) else ("direct",):
                            k = {"hop": 2, "negated": 2}.get(task) or (int(task[0]) if task[0].isdigit() else 1)
                            exact = p_here**k if way == "worked" or k == 1 else 0.1
                            if way == "worked":
                                rows.append(row(task, way, "step_accuracy", p_here**step_scale))
                                rows.append(row(task, way, "partial_credit", p_here**step_scale))
                            log_prob = math.log(p_here) if way == "worked" or k == 1 else -2.3
                            rows.append(row(task, way, "exact_match", exact))
                            rows.append(row(task, way, "choice_accuracy", exact))
                            rows.append(row(task, way, "answer_log_prob", log_prob))
                            rows.append(row(task, way, "answer_margin", log_prob + 2.3))
    return rows


def gentle(x: float, t: float, loss: float) -> float:
    return 1 / (1 + math.exp(-(0.7 * x + 0.4 * t - 4.0)))


SETTINGS = StudySettings(widths=[16 * k for k in range(1, 8)])


@pytest.fixture(scope="module")
def smooth() -> dict:
    return findings(planted(gentle, code_gain=0.03), SETTINGS)


def test_p_to_the_n_is_found_and_is_no_jump(smooth: dict) -> None:
    for one in smooth["steps"]:
        assert one["n"]["mean"] == pytest.approx(one["k"], rel=0.01)
        assert abs(one["misses"]["worked"]["mean"]) < 1e-9
        assert one["misses"]["direct"]["mean"] < 0.1 - 0.1 ** one["k"]
    for name, one in smooth["curves"]["params"].items():
        assert one["kind"] != "sudden", name
    assert smooth["curves"]["params"]["fact"]["kind"] == "steady"
    assert smooth["curves"]["params"]["6-step direct"]["kind"] == "flat"
    assert smooth["curves"]["params"]["fact"]["beats_chance"]
    assert not smooth["curves"]["params"]["6-step direct"]["beats_chance"]
    assert any(sentence.startswith("Sudden, over size: none") for sentence in headline(smooth))


def test_a_break_in_every_metric_is_sudden() -> None:
    rows = [row for row in planted(lambda x, t, loss: 0.1 if x < 3.5 else 0.9) if row.task == "4-step"]
    over_size = curves_over(rows, "params")
    assert over_size["4-step worked"]["kind"] == "sudden" and over_size["4-step direct"]["kind"] == "flat"
    told = headline({"curves": {"params": over_size, "tokens": {}}})
    assert told[1] == "Sudden, over size: 4-step worked; over training: none."


def test_what_rises_to_a_guess_is_not_called_growth() -> None:
    one = {"kind": "steady", "exact_curve": "steady", "beats_chance": False}
    told = headline({"curves": {"params": {"fact": one | {"beats_chance": True}}, "tokens": {"6-step direct": one}}})
    assert told[0] == "Steady, over size: fact; over training: none."
    assert "Rising, but to no better than a guess: 6-step direct." in told


def test_what_code_gives_has_its_size_and_sign(smooth: dict) -> None:
    gap = smooth["code"]["fact"]["exact_match"]
    assert gap["low"] < 0.03 < gap["high"] + 1e-9 or gap["mean"] == pytest.approx(0.03, abs=0.006)
    assert gap["low"] > 0
    # Both corpora have code, so whether worked steps were trained on differs in nothing.
    assert smooth["worked"]["trained"]["fact"]["exact_match"]["mean"] == 0
    assert "2-step worked" not in smooth["worked"]["trained"]


def test_equal_loss_tells_apart_what_hangs_on_the_loss_and_what_on_size() -> None:
    by_loss = points_of(planted(lambda x, t, loss: 1.4 - 0.5 * loss))
    by_size = points_of(planted(lambda x, t, loss: 0.1 + 0.12 * x))
    for points, low, high in ((by_loss, -0.002, 0.002), (by_size, 0.23, 0.25)):
        whole = [point for point in points if point.corpus == "whole"]
        at_loss, at_compute = stopped_early(whole, ["fact"])
        assert low < at_loss.differences["fact"].mean < high
        # Two rungs up is nine times the parameters: equal compute lies between two checkpoints.
        assert at_compute.compute.mean == pytest.approx(1.0, rel=1e-6)
        assert at_loss.compute.mean == pytest.approx(9 / 2**3, rel=1e-6)  # a loss lower by 0.3 is worth three doublings


def test_what_is_made_of_others_needs_them_and_is_told_by_their_product() -> None:
    rows = planted(lambda x, t, loss: gentle(x + 1.5, t, loss))
    whole = [point for point in points_of(rows) if point.corpus == "whole"]
    asked = questions()
    found = {(edge.earlier, edge.later): edge for edge in edges(whole, asked)}
    # p^k: k steps are mastered only where k - 1 are, and a line that follows from two others is left out.
    assert ("3-step worked", "4-step worked") in found and ("2-step worked", "4-step worked") not in found
    assert all(edge.exceptions <= 0.05 * edge.witnesses and edge.alone > edge.exceptions for edge in found.values())
    told = {one.question: one for one in compositions(whole, whole, asked)}
    assert abs(told["3-step worked"].bias.mean) < 1e-9 and told["3-step worked"].rms < 1e-9
    assert told["3-step worked"].reached_at == told["3-step worked"].predicted_at
    assert told["2-step direct"].bias.mean < 0 and told["2-step direct"].reached_at is None
    assert parts_of("fact") == [] and parts_of("hop worked") == ["fact", "1-step"]


def test_residuals_of_the_loss_show_what_size_adds() -> None:
    points = points_of(planted(lambda x, t, loss: 1.4 - 0.5 * loss))
    only_loss = against_loss(points, ["fact"])["fact"]["exact_match"]
    assert only_loss["explained"] > 0.99 and abs(only_loss["slope"]["mean"]) < 1e-3
    points = points_of(planted(lambda x, t, loss: 0.1 + 0.12 * x))
    with_size = against_loss(points, ["fact"])["fact"]["exact_match"]
    assert with_size["explained"] < 0.9 and with_size["slope"]["low"] > 0.01


def test_one_seed_and_one_corpus_leave_intervals_out_and_say_so() -> None:
    rows = [row for row in planted(gentle) if row.seed == 0 and row.model in ("whole-3", "whole-5", "whole-6")]
    rows = [row for row in rows if row.tokens in TOKENS[-4:]]
    record = findings(rows, SETTINGS)
    assert record["code"] == {} and record["worked"]["trained"] == {}
    assert record["steps"][0]["n"]["low"] is None
    assert all(one["rms_by_loss"] is None for one in record["compositions"])
    titles = [table.title for table in tables_of(record)]
    assert "With code or without" not in titles and "k steps as p^n" in titles


def test_questions_of_a_corpus_without_steps_are_direct() -> None:
    assert question("fact", "direct") == "fact"
    assert not any("worked" in name for name in questions("no-steps")) and "6-step direct" in questions("no-steps")
