"""Kinds of curves over scale: jumps that are the metric's are not called sudden, true breaks are found."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from command_line import talaria
from rich.console import Console
from scipy.stats import chi2

from talaria.errors import UserError
from talaria.report.results import ResultRow, write_results
from talaria.scaling.all_or_nothing import _chi_squared_tail, fit_steps, steps_between
from talaria.scaling.curves import Series, classify
from talaria.scaling.emergence import Score, _is_lower_better, is_smooth, judge, read_scores
from talaria.scaling.emergence_report import verdict_table

SCALES = 1e7 * 2.0 ** np.arange(8)
ITEMS = 200


def task(p: np.ndarray, n_steps: int, seed: int, with_steps: bool = True) -> list[Score]:
    """Exact match of `n_steps` steps of success `p`, and the share of right steps beside it."""
    generator = np.random.default_rng(seed)
    rows = []
    for scale, share in zip(SCALES, p, strict=True):
        steps = generator.random((ITEMS, n_steps)) < share
        rows.append(Score(float(scale), "task", "exact_match", float(steps.all(axis=1).mean()), None, ITEMS))
        if with_steps:
            rows.append(Score(float(scale), "task", "step_accuracy", float(steps.mean()), None, ITEMS))
    return rows


def smooth(seed: int) -> np.ndarray:
    generator = np.random.default_rng(1000 + seed)
    return 1 / (1 + np.exp(-generator.uniform(0.3, 1.2) * (np.arange(8) - generator.uniform(0, 7))))


def test_smooth_steps_are_not_called_sudden_however_sharp_their_exact_match() -> None:
    """60 curves of 1 to 10 steps: at 5 % false alarms 3 are expected, and 8 or more would come with p = 0.01."""
    alarms = sum(judge(task(smooth(seed), 1 + seed % 10, seed), seed=seed)[0].kind == "sudden" for seed in range(60))
    assert alarms < 8


def test_a_break_within_one_doubling_is_found() -> None:
    found = 0
    for seed in range(30):
        p = np.where(np.arange(8) < 2 + seed % 5, 0.5, 0.9)
        found += judge(task(p, 1 + seed % 10, seed), seed=seed)[0].kind == "sudden"
    assert found >= 24


def test_exact_match_alone_leaves_a_jump_undetermined() -> None:
    p = np.where(np.arange(8) < 4, 0.5, 0.9)
    verdict = judge(task(p, 5, 0, with_steps=False))[0]
    assert verdict.kind == "undetermined"
    assert "no smooth metric" in verdict.reason
    steep = 1 / (1 + np.exp(-1.0 * (np.arange(8) - 2)))
    assert judge(task(steep, 10, 0, with_steps=False))[0].kind == "undetermined"


def test_beside_no_kind_stands_the_name_of_the_likeliest() -> None:
    """The bug: `undetermined 0.98` reads as certain, and was another kind's probability."""
    steep = 1 / (1 + np.exp(-1.0 * (np.arange(8) - 2)))
    [undetermined], [flat] = judge(task(steep, 10, 0, with_steps=False)), judge(task(np.full(8, 0.4), 1, 0))
    shown = []
    for verdict in (undetermined, flat):
        console = Console(width=200, file=io.StringIO())
        console.print(verdict_table([verdict], "size"))
        shown.append(console.file.getvalue())
    likeliest = max(undetermined.probabilities, key=undetermined.probabilities.__getitem__)
    assert f"{likeliest} {undetermined.probability:.2f}" in shown[0]
    assert f"flat {flat.probability:.2f}" not in shown[1] and f"{flat.probability:.2f}" in shown[1]


def test_a_jump_that_is_the_metrics_is_told_to_be() -> None:
    p = 1 / (1 + np.exp(-1.2 * (np.arange(8) - 1)))
    verdict = judge(task(p, 10, 2))[0]
    assert verdict.kind == "steady"
    steps = next(one for one in verdict.metrics if one.metric == "exact_match").steps
    assert steps is not None
    assert steps.low <= 10 <= steps.high
    assert verdict.steps_measured == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize(
    ("p", "kind"),
    [
        (np.full(8, 0.4), "flat"),
        (np.linspace(0.2, 0.8, 8), "steady"),
        (np.linspace(0.7, 0.3, 8), "inverse"),
        (np.array([0.7, 0.55, 0.4, 0.3, 0.35, 0.5, 0.65, 0.8]), "U-shaped"),
    ],
)
def test_each_kind_is_recognised(p: np.ndarray, kind: str) -> None:
    """Ten seeds each; a kind that is found by chance would not be found eight times."""
    kinds = [judge(task(p, 1, seed), seed=seed)[0].kind for seed in range(10)]
    assert kinds.count(kind) >= 8, kinds


@pytest.mark.parametrize(
    "y",
    [
        [-0.1, -0.3, -0.5, -0.7, -0.2, -0.4, -0.6, -0.8],
        [-0.7, -0.8, -0.9, -0.1, -0.3, -0.5, -0.6, -0.7],
        [-0.2, -0.35, -0.5, -0.65, -0.8, -0.2, -0.18, -0.16],
    ],
)
def test_a_jump_within_a_curve_that_does_not_rise_is_no_sudden_ability(y: list[float]) -> None:
    rows = [Score(float(x), "task", "log_likelihood", value, 0.02, ITEMS) for x, value in zip(SCALES, y, strict=True)]
    assert judge(rows)[0].kind != "sudden"


def test_a_loss_that_falls_is_steady_and_a_lower_perplexity_is_better() -> None:
    for metric, scores in (("loss", 4 - 0.2 * np.arange(8)), ("ppl", np.exp(4 - 0.2 * np.arange(8)))):
        noise = 1 + 0.001 * np.random.default_rng(0).standard_normal(8)
        rows = [
            Score(float(x), "text", metric, float(y), None, None) for x, y in zip(SCALES, scores * noise, strict=True)
        ]
        verdict = judge(rows)[0]
        assert verdict.kind == "steady"
        value, low, high = verdict.metrics[0].next_score
        assert low <= value <= high < scores[-1]


def test_a_rising_error_rate_is_inverse() -> None:
    rows = task(np.linspace(0.2, 0.8, 8), 1, 0, with_steps=False)
    errors = [Score(row.scale, "task", "error_rate", row.score, None, ITEMS) for row in rows]
    verdict = judge(errors)[0]
    assert verdict.kind == "inverse"
    value, low, high = verdict.metrics[0].next_score
    assert 0.7 < low <= value <= high <= 1


def test_scales_too_far_apart_do_not_tell_a_jump() -> None:
    y = np.where(np.arange(8) < 4, 0.0, 1.0) + 0.01 * np.random.default_rng(0).standard_normal(8)
    assert classify(Series(np.arange(8.0), y, np.full(8, 0.01))).kind == "sudden"
    wide = classify(Series(4 * np.arange(8.0), y, np.full(8, 0.01)))
    assert wide.kind == "undetermined"
    assert "too far" in wide.reason


def test_four_scales_are_too_few() -> None:
    rows = [
        Score(float(x), "task", "accuracy", y, None, 100) for x, y in zip(SCALES, (0.1, 0.1, 0.9, 0.9), strict=False)
    ]
    assert judge(rows)[0].kind == "undetermined"


def test_seeds_at_one_scale_are_pooled() -> None:
    p = np.linspace(0.2, 0.8, 8)
    rows = [row for seed in range(3) for row in task(p, 1, seed, with_steps=False)]
    one = judge(rows)[0].metrics[0]
    assert len(one.scales) == 8
    assert one.errors is not None
    assert one.errors[0] == pytest.approx(math.sqrt(one.scores[0] * (1 - one.scores[0]) / 600))


def test_steps_are_counted_from_shares() -> None:
    x, n = np.arange(8.0), np.full(8, 100_000.0)
    p = 1 / (1 + np.exp(-0.8 * (x - 2)))
    steps = fit_steps(x, p**6, n, ahead=8.0)
    assert steps.low <= 6 <= steps.high
    assert steps.p_fit > 0.05
    assert steps.next_score[0] == pytest.approx((1 / (1 + math.exp(-0.8 * 6))) ** 6, abs=0.002)
    assert steps_between(p, p**6, n) == pytest.approx(6)
    assert steps_between(np.ones(8), np.ones(8), n) is None


def test_the_chi_squared_tail_is_scipys() -> None:
    for degrees in (1, 2, 3, 4, 5, 8, 11):
        for value in (0.3, 2.0, 9.0, 30.0):
            assert _chi_squared_tail(value, degrees) == pytest.approx(chi2.sf(value, degrees), rel=1e-10)


@pytest.mark.parametrize("metric", ["accuracy", "reward", "loss"])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.25, 2.5])
def test_a_metric_that_never_moves_is_flat_though_it_has_no_errors(metric: str, value: float) -> None:
    verdict = judge([Score(float(x), "task", metric, value, None, None) for x in SCALES])[0]
    assert verdict.kind == "flat"
    assert verdict.metrics[0].next_score == pytest.approx((value, value, value), abs=1e-4)


def test_where_a_metric_without_errors_lands_does_not_depend_on_its_zero() -> None:
    y = 0.3 * np.arange(8) + 0.01 * np.random.default_rng(0).standard_normal(8)
    low, high = (
        judge([Score(float(x), "task", "reward", float(v), None, None) for x, v in zip(SCALES, y + zero, strict=True)])
        for zero in (0.0, 1e5)
    )
    assert np.array(high[0].metrics[0].next_score) - 1e5 == pytest.approx(low[0].metrics[0].next_score, abs=1e-4)
    assert low[0].kind == high[0].kind == "steady"


@pytest.mark.parametrize(
    ("metric", "smooth", "lower"),
    [
        ("problems_solved", False, False),
        ("application_accuracy", False, False),
        ("logic_accuracy", False, False),
        ("dialog_accuracy", False, False),
        ("multistep_exact_match", False, False),
        ("multi_step_exact_match", False, False),
        ("glossary_accuracy", False, False),
        ("no_errors", False, False),
        ("acc_norm", False, False),
        ("step_accuracy", True, False),
        ("StepAccuracy", True, False),
        ("log_likelihood", True, False),
        ("logprob", True, False),
        ("partial credit", True, False),
        ("rougeLsum", True, False),
        ("rouge1", True, False),
        ("F1", True, False),
        ("validation-loss", True, True),
        ("bits_per_byte", True, True),
        ("word_perplexity", True, True),
        ("ppl", True, True),
        ("brier", True, True),
        ("error_rate", False, True),
        ("pct_stereotype", False, True),
        ("likelihood_difference", True, True),
    ],
)
def test_a_metrics_kind_is_told_by_whole_parts_of_its_name(metric: str, smooth: bool, lower: bool) -> None:
    assert (is_smooth(metric), _is_lower_better(metric)) == (smooth, lower)


def test_problems_solved_all_at_once_are_not_called_a_sudden_ability() -> None:
    jump = [0.01] * 4 + [0.9] * 4
    rows = [Score(float(x), "t", "problems_solved", y, None, 1000) for x, y in zip(SCALES, jump, strict=True)]
    assert judge(rows)[0].kind == "undetermined"


# ------------------------------------------------------------------------------------------ the command


def test_one_scale_alone_prints_json_that_others_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("scale,task,metric,score,n\n1e6,t,accuracy,0.5,100\n")
    assert talaria("emergence", path, "--json") == 0
    text = capsys.readouterr().out
    assert "NaN" not in text
    assert json.loads(text)["tasks"][0]["next_scale"] is None
    assert talaria("emergence", path) == 0
    assert "nan" not in capsys.readouterr().out


def test_results_of_several_sizes_give_verdicts_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [ResultRow("chance", None, None, None, None, None, "sums", "2", "chat", 0, "accuracy", 0.05, None, 200)]
    for place, scale in enumerate(SCALES):
        for step in (10, 20):
            score = 0.1 + 0.1 * place if step == 20 else 0.0
            stderr = math.sqrt(score * (1 - score) / 200)
            rows.append(
                ResultRow(
                    f"m{place}", int(scale), 1, 1.0, 0, step, "sums", "2", "chat", 0, "accuracy", score, stderr, 200
                )
            )
    write_results(rows, tmp_path / "results.csv")
    assert talaria("emergence", tmp_path / "results.csv", "--json", "--plot", tmp_path / "pictures") == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["task"], one["kind"]) for one in told["tasks"]] == [("sums", "steady")]
    assert sum(told["tasks"][0]["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert told["tasks"][0]["next_scale"] == pytest.approx(2 * SCALES[-1])
    assert (tmp_path / "pictures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert talaria("emergence", tmp_path / "results.csv") == 0
    assert "steady" in capsys.readouterr().out
    page = (tmp_path / "pictures" / "curves.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and "sums" in page and "steady" in page
    assert talaria("emergence", tmp_path / "results.csv", "--scale", "age") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scale,task,metric\n1e7,a,b\n", ":1: no column score"),
        ("scale,task,metric,score,n\n1e7,a,b,nan,20\n", ":2: score is nan"),
        ("scale,task,metric,score,n\n1e7,a,b,0.5,20\n1e8,a,b,0.5,2.5\n", ":3: .*whole number"),
        ("scale,task,metric,score,n\nbig,a,b,0.5,20\n", ":2: scale is 'big'"),
    ],
)
def test_a_score_that_cannot_be_right_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_scores(path)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_diverged_models_score_is_named(tmp_path: Path, score: float) -> None:
    """The bug: one such row in results.csv ended in a traceback."""
    row = ResultRow("m3", 1000, 1, 1.0, 0, 20, "pages", "2", "chat", 0, "loss", score, None, 200)
    write_results([row], tmp_path / "results.csv")
    with pytest.raises(UserError, match="loss of pages by m3: its score is"):
        read_scores(tmp_path / "results.csv")


@pytest.mark.real_data
def test_pythias_lambada_grows_steadily_with_size(real_data: Path) -> None:
    sizes = {
        "70m": 7e7,
        "160m": 1.6e8,
        "410m": 4.1e8,
        "1b": 1e9,
        "1.4b": 1.4e9,
        "2.8b": 2.8e9,
        "6.9b": 6.9e9,
        "12b": 1.2e10,
    }
    with gzip.open(real_data / "pythia_evals" / "pythia_evals_main_tidy.csv.gz", "rt") as file:
        rows = [
            Score(
                sizes[row["model"].removeprefix("pythia-").removesuffix("-deduped")],
                row["task"],
                row["metric"],
                float(row["value"]),
                None,
                n,
            )
            for row in csv.DictReader(file)
            if row["set"] == "pythia-v1"
            and row["shots"] == "zero-shot"
            and row["model"].endswith("-deduped")
            and row["step"] == "143000.0"
            and row["model"].removeprefix("pythia-").removesuffix("-deduped") in sizes
            for n in ([5153] if row["metric"] == "acc" else [None])
            if row["task"] == "lambada_openai" and row["metric"] in ("acc", "ppl")
        ]
    assert len(rows) == 16
    verdict = judge(rows)[0]
    assert verdict.kind == "steady"
    assert {one.metric for one in verdict.metrics} == {"acc", "ppl"}
