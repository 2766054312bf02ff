"""The textbook cases, shares that are really the best, and recipes that run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import talaria

from talaria.errors import UsageError, UserError
from talaria.files import read_json
from talaria.recipe import read_recipe
from talaria.scaling.fit import fit_law, write_fit
from talaria.scaling.laws import CHINCHILLA as LAW
from talaria.scaling.planner import CHINCHILLA, KAPLAN, Budget, Rule, allocate, read_rule
from talaria.scaling.points import Points
from talaria.scaling.sizes import shape_near

GPT_3_TOKENS = 300e9


def test_ten_times_the_compute_is_shared_out_as_published() -> None:
    """Hoffmann et al. 2022: 5.5 and 1.8 times by Kaplan; the square root of ten each by Chinchilla."""
    for rule, params, tokens in ((KAPLAN, 5.5, 1.8), (CHINCHILLA, math.sqrt(10), math.sqrt(10))):
        before, after = (allocate(rule, Budget(flops=flops)) for flops in (1e21, 1e22))
        assert after.parameters / before.parameters == pytest.approx(params, rel=0.015)
        assert after.tokens / before.tokens == pytest.approx(tokens, rel=0.015)


def test_gophers_compute_gives_chinchilla_which_has_the_lower_loss() -> None:
    chinchilla = allocate(CHINCHILLA, Budget(flops=5.76e23))
    gopher = allocate(CHINCHILLA, Budget(params=280e9, tokens=300e9))
    assert chinchilla.parameters == pytest.approx(70e9, rel=0.02)
    assert chinchilla.tokens == pytest.approx(1.4e12, rel=0.02)
    assert chinchilla.loss is not None
    assert gopher.loss is not None
    assert chinchilla.loss.value < gopher.loss.value


def test_a_hundred_trillion_parameters() -> None:
    """About ten times GPT-3's data by Kaplan's exponents, 2,000 trillion tokens by Chinchilla; never 190 times."""
    kaplan = allocate(KAPLAN, Budget(params=1e14))
    assert 8 < kaplan.tokens / GPT_3_TOKENS < 12
    assert allocate(KAPLAN, Budget(params=175e9)).tokens == pytest.approx(GPT_3_TOKENS)
    assert allocate(CHINCHILLA, Budget(params=1e14)).tokens == pytest.approx(2e15)


def test_given_two_of_three_the_third_follows() -> None:
    assert allocate(CHINCHILLA, Budget(flops=6e20, params=1e9)).tokens == pytest.approx(1e11)
    assert allocate(CHINCHILLA, Budget(params=1e9, tokens=3e9)).flops == pytest.approx(1.8e19)
    assert allocate(CHINCHILLA, Budget(tokens=2e10)).parameters == pytest.approx(1e9)
    with pytest.raises(UsageError, match="nothing sets a size"):
        allocate(CHINCHILLA, Budget(served_tokens=1e9))
    with pytest.raises(UsageError, match="--parameters -1"):
        allocate(CHINCHILLA, Budget(params=-1.0))


def test_served_models_are_smaller_and_longer_and_cheaper_at_their_loss() -> None:
    """Every other pair on the line of equal loss costs more for training and serving together."""
    served = 5e12
    rule = Rule("own", 1, 0.5, LAW, CHINCHILLA.theta, None, 0.0, "")
    assert rule.theta is not None
    _, _, _, alpha, beta = rule.theta
    ratio = alpha * math.exp(rule.theta[0]) / (beta * math.exp(rule.theta[1]))
    a = beta / (alpha + beta)
    own = Rule("own", ratio ** (1 / (alpha + beta)) / 6**a, a, LAW, rule.theta, None, 0.0, "")
    alone, plan = (allocate(own, Budget(flops=1e23, served_tokens=s)) for s in (None, served))
    assert plan.parameters < 0.7 * alone.parameters
    assert plan.flops == pytest.approx(1e23)

    def cost(params: float, tokens: float) -> float:
        return 6 * params * tokens + 2 * params * served

    best = cost(plan.parameters, plan.tokens)
    for factor in (0.5, 0.8, 0.95, 1.05, 1.25, 2.0):
        params = factor * plan.parameters
        # The tokens that bring the same loss with this size.
        assert plan.loss is not None
        left = plan.loss.value - math.exp(rule.theta[2]) - math.exp(rule.theta[0]) / params**alpha
        if left > 0:
            assert cost(params, (math.exp(rule.theta[1]) / left) ** (1 / beta)) > best


@pytest.mark.parametrize("share", [0.9, 0.3, 0.08])
def test_served_models_know_that_their_text_is_repeated(share: float) -> None:
    """As above with too little text: every other pair on the line of equal loss, repetition counted, costs more."""
    served = 2e12
    plenty = allocate(CHINCHILLA, Budget(flops=1e22, served_tokens=served))
    unique = share * plenty.tokens
    plan = allocate(CHINCHILLA, Budget(flops=1e22, tokens=unique, served_tokens=served))
    assert plan.epochs is not None
    assert plan.epochs > 1

    def loss(params: float, tokens: float) -> float:
        found = replace(CHINCHILLA, covariance=None).loss(params, tokens, unique)
        assert found is not None
        return found.value

    def cost(params: float, tokens: float) -> float:
        return 6 * params * tokens + 2 * params * served

    target, best = loss(plan.parameters, plan.tokens), cost(plan.parameters, plan.tokens)
    for factor in (0.7, 0.85, 1.2, 1.5):
        params = factor * plan.parameters
        low, high = math.log(plan.tokens) - 7, math.log(plan.tokens) + 7
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if loss(params, math.exp(middle)) > target else (low, middle)
        assert cost(params, math.exp(high)) > best, factor


def test_text_that_runs_short_is_repeated_and_costs_loss() -> None:
    plenty = allocate(CHINCHILLA, Budget(flops=1e20, tokens=1e13))
    short = allocate(CHINCHILLA, Budget(flops=1e20, tokens=plenty.tokens / 8))
    assert short.flops == pytest.approx(1e20)
    assert short.epochs is not None
    assert short.epochs > 2
    assert plenty.loss is not None
    assert short.loss is not None
    assert short.loss.value > plenty.loss.value
    assert any("too little" in note for note in short.notes)


def test_ones_own_fit_plans(tmp_path: Path) -> None:
    """The best size under the fitted law is where the law itself, tried at many sizes, has its least loss."""
    generator = np.random.default_rng(0)
    params, tokens = (
        np.exp(generator.uniform(math.log(low), math.log(high), 60)) for low, high in ((1e6, 1e8), (1e7, 1e10))
    )
    points = Points(params, tokens, 6 * params * tokens, np.ones(60), np.arange(60))
    loss = np.exp(LAW.predict(np.array([[4.0, 6.0, 0.3, 0.3, 0.35]]), points)[0][0])
    fit = fit_law("chinchilla", Points(**(vars(points) | {"loss": loss})), draws=30)
    write_fit(fit, tmp_path / "fit.json")
    rule = read_rule(tmp_path / "fit.json")
    plan = allocate(rule, Budget(flops=1e17))
    sizes = np.geomspace(1e6, 1e10, 4001)
    tried = Points(sizes, 1e17 / 6 / sizes, np.full(4001, 1e17), np.ones(4001), np.arange(4001))
    assert fit.theta is not None
    best = sizes[int(np.argmin(LAW.predict(fit.theta[None], tried)[0][0]))]
    assert plan.parameters == pytest.approx(best, rel=0.01)
    assert plan.loss is not None
    assert plan.loss.low is not None
    assert plan.loss.low < plan.loss.value < (plan.loss.high or 0)
    options = ["--flops", "1e17", "--device", "a100", "--fit", tmp_path / "fit.json", "--output", tmp_path / "own.toml"]
    (tmp_path / "own.txt").write_text("some text\n")
    assert talaria("plan", *options, "--corpus", tmp_path / "own.txt") == 0
    recipe = read_recipe(tmp_path / "own.toml", [])
    assert recipe.plan is not None
    assert recipe.plan.loss == pytest.approx((plan.loss.low, plan.loss.high), rel=0.01)
    assert talaria("plan", *options[:-1], tmp_path / "world.toml") == 0
    told = read_recipe(tmp_path / "world.toml", []).plan
    assert told is not None and told.loss is None, "a world read many times over reaches another loss"
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(UserError, match="not a fit"):
        read_rule(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("law", "change"),
    [
        ("chinchilla", {"coefficients": {"E": 1.0, "A": 400.0, "B": 400.0, "beta": 0.3}}),
        ("chinchilla", {"theta": [1.0, 2.0]}),
        ("chinchilla", {"theta_covariance": [[1.0]]}),
        ("isoflop", {"coefficients": {"a": 0.5}}),
    ],
)
def test_a_damaged_fit_is_named(tmp_path: Path, law: str, change: dict[str, object]) -> None:
    told: dict[str, object] = {
        "law": law,
        "coefficients": {"E": 1.0, "A": 400.0, "B": 400.0, "alpha": 0.3, "beta": 0.3},
        "theta": [6.0, 6.0, 0.0, 0.3, 0.3],
        "theta_covariance": None,
        "residuals": {"rms": 0.01},
    }
    (tmp_path / "fit.json").write_text(json.dumps(told | change))
    with pytest.raises(UserError, match=r"fit\.json: coefficients that are none of law"):
        read_rule(tmp_path / "fit.json")


def test_repeated_text_is_worth_what_ones_own_runs_say(tmp_path: Path) -> None:
    """The bug: a fit of repetition planned by the published worth of it, and Kaplan's law took repeated text for
    new."""
    told = {"law": "repeated", "coefficients": {"E": 1.0, "A": 400.0, "B": 400.0, "alpha": 0.3, "beta": 0.3}}
    losses = []
    for log_worth in (0.0, math.log(100)):
        theta = [6.0, 6.0, 0.0, 0.3, 0.3, log_worth, 1.6]
        more = {"theta": theta, "theta_covariance": None, "residuals": {"rms": 0.01}}
        (tmp_path / "fit.json").write_text(json.dumps(told | more))
        found = read_rule(tmp_path / "fit.json").loss(1e8, 1e10, unique=1e9)
        assert found is not None
        losses.append(found.value)
    assert losses[0] > 1.02 * losses[1]
    plan = allocate(KAPLAN, Budget(params=4e8, flops=1e20, tokens=1e8))
    assert plan.loss is None and any("repeated" in note for note in plan.notes)
    assert allocate(KAPLAN, Budget(params=4e8, flops=1e20)).loss is not None


@pytest.mark.parametrize(
    ("law", "coefficients"),
    [
        ("chinchilla", {"E": 1.0, "A": 0.5, "B": 0.5, "alpha": -0.1, "beta": -0.1}),
        ("kaplan", {"N_c": 1e10, "D_c": 1e10, "alpha_N": -0.1, "alpha_D": -0.1}),
    ],
)
def test_a_law_whose_loss_rises_with_scale_plans_nothing(
    tmp_path: Path, law: str, coefficients: dict[str, float]
) -> None:
    told = {"law": law, "coefficients": coefficients, "theta": None, "theta_covariance": None}
    (tmp_path / "fit.json").write_text(json.dumps(told | {"residuals": {"rms": 0.01}}))
    with pytest.raises(UserError, match="does not fall with scale"):
        read_rule(tmp_path / "fit.json")


@pytest.mark.parametrize("params", [2e5, 1e6, 3e7, 1.2e9, 7e10, 1e14])
def test_a_shape_near_any_size(params: float) -> None:
    shape = shape_near(params, 2048 if params < 1e7 else 32_768, 256)
    assert shape.n_params() == pytest.approx(params, rel=0.15)
    assert 8 < shape.d_model / shape.n_layers < 400


# ------------------------------------------------------------------------------------------ the command


def test_the_command_prints_what_was_promised(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--flops", "1e21", "--device", "h100", "--devices", 8, "--price", 2, "--output", tmp_path / "large.toml"]
    assert talaria("plan", *options, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {"parameters", "tokens", "flops", "hours", "memory_bytes", "loss"} <= set(told)
    assert set(told["loss"]) == {"value", "low", "high"}
    assert told["parameters"] == pytest.approx(math.sqrt(1e21 / 120), rel=1e-6)
    assert told["cost"] == pytest.approx(told["hours"] * 16)
    recipe = read_recipe(tmp_path / "large.toml", [])
    assert recipe.pretrain is not None
    assert recipe.pretrain.tokens == pytest.approx(told["tokens"], rel=0.01)
    assert recipe.plan is not None
    assert recipe.plan.hours == pytest.approx(told["hours"])
    assert recipe.plan.hourly_cost == 16
    assert recipe.plan.loss is None, "a published law's loss is of another text: no run is held against it"
    assert talaria("plan", *options) == 1
    assert "exists already" in capsys.readouterr().err


def test_hours_and_money_bind(capsys: pytest.CaptureFixture[str]) -> None:
    def plan(*options: object) -> dict[str, float]:
        assert talaria("plan", "--device", "a100", "--json", *options) == 0
        told: dict[str, float] = json.loads(capsys.readouterr().out)
        return told

    assert plan("--hours", 10)["hours"] == pytest.approx(10, rel=0.01)
    money = plan("--money", 100, "--price", 2, "--hours", 1000)
    assert money["cost"] == pytest.approx(100, rel=0.01)
    served = plan("--hours", 10, "--served-tokens", 1e12)
    assert served["hours"] == pytest.approx(10, rel=0.01)
    assert served["parameters"] < 0.7 * plan("--hours", 10)["parameters"]
    assert plan("--hours", 1e9, "--flops", 1e20)["flops"] == pytest.approx(1e20, rel=1e-6)


def test_wrong_budgets_end_with_two(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for wrong in (
        [],
        ["--flops", "-1"],
        ["--hours", "0", "--device", "a100"],
        ["--money", "5", "--device", "a100"],
        ["--flops", "1e20", "--device", "a1000"],
        ["--flops", "1e20", "--law", "moore"],
        ["--flops", "1e20", "--device", "a100", "--utilisation", "7"],
        ["--flops", "1e20", "--devices", "2"],
        ["--flops", "1e20", "--device", "a100", "--corpus", tmp_path / "none"],
        ["--flops", "1", "--device", "a100"],
        ["--flops", "1e60", "--device", "a100"],
        ["--parameters", "1000", "--device", "a100"],
        ["--parameters", "1e9", "--served-tokens", "1e13", "--device", "a100"],
    ):
        assert talaria("plan", *wrong) == 2, wrong
        assert capsys.readouterr().err.count("\n") == 1


def test_a_size_below_every_shape_gives_way_to_the_smallest(capsys: pytest.CaptureFixture[str]) -> None:
    """The bug: six parameters, with a loss of 269 nats, where the tokens to be served took the budget."""
    for options in (["--flops", "1e13", "--served-tokens", "1e12"], ["--tokens", "3000"], ["--hours", "1e-8"]):
        assert talaria("plan", *options, "--device", "a100", "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert told["parameters"] == told["recipe"]["parameters"] == 82_080, options
        assert told["flops"] == pytest.approx(6 * 82_080 * told["tokens"], rel=1e-3)
        assert told["notes"][1].startswith("the smallest shape of a recipe with a vocabulary of 2,048 has 82,080")
    assert told["hours"] == pytest.approx(1e-8, rel=0.02)
    assert talaria("plan", "--parameters", 1e6, "--vocab-size", 200_000, "--device", "a100") == 2
    told = capsys.readouterr().err
    assert "--parameters 1,000,000: the smallest shape" in told and "smaller --vocab-size" in told
    assert talaria("plan", "--parameters", 30_000, "--device", "a100") == 0


def test_a_plan_says_how_often_its_recipe_reads_the_world(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The bug: a recipe of billions of tokens over a world of ten million, and not a word of it."""
    (tmp_path / "own.txt").write_text("some text\n")
    for options, told in ((["--flops", "1e19"], True), (["--flops", "1e19", "--corpus", tmp_path], False)):
        assert talaria("plan", *options, "--device", "a100") == 0
        assert ("reads the embedded world some 600 times" in " ".join(capsys.readouterr().out.split())) is told
    assert talaria("plan", "--flops", "1e14", "--device", "a100") == 0
    assert "embedded world" not in capsys.readouterr().out


def test_a_vocabulary_that_the_recipe_would_refuse_is_not_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert talaria("plan", "--flops", "1e15", "--device", "a100", "--vocab-size", 260) == 2
    assert "261" in capsys.readouterr().err
    assert talaria("plan", "--flops", "1e15", "--device", "a100", "--vocab-size", 261) == 0


def test_a_planned_recipe_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    words = ["the", "wind", "turns", "a", "mill", "and", "grain", "falls", "to", "stone", "by", "night"]
    text = "\n\n".join(" ".join(generator.choice(words, 60)) + "." for _ in range(200))
    (tmp_path / "book.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    options = ["--flops", "2e10", "--vocab-size", 300, "--context", 64, "--corpus", "book.txt"]
    assert talaria("plan", *options, "--output", "small.toml") == 0
    assert talaria("run", "small.toml") == 0
    told = read_json(tmp_path / "runs" / "small" / "pretrain" / "training.json")
    recipe = read_recipe(tmp_path / "small.toml", [])
    assert recipe.pretrain is not None
    assert told["tokens"] == pytest.approx(recipe.pretrain.tokens, rel=0.02)
