"""The ladder: rungs below a recipe's run, kept when current, and what they predict compared with what came."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import talaria

from talaria.ladder import Rung, plan_rungs
from talaria.model.settings import ModelSettings, resolve_shape
from talaria.pipeline import PretrainStage
from talaria.recipe import Recipe
from talaria.scaling.planner import worth_of
from talaria.train.settings import OptimizerSettings, PretrainSettings, plan_pretraining

RECIPE = """\
[corpus]
paths = ["book.txt"]
quality = false
deduplicate = false
boilerplate = false

[tokenizer]
vocab_size = 300
validation_fraction = 0.2

[model]
depth = 4
d_model = 64
n_heads = 4
context = 32

[pretrain]
tokens = 24000
batch_tokens = 512
optimizer = { learning_rate = 3e-3 }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    generator = np.random.default_rng(0)
    words = ["the", "wind", "turns", "a", "mill", "and", "grain", "falls", "to", "stone", "by", "night"]
    paragraphs = [" ".join(generator.choice(words, 40)) + "." for _ in range(120)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    (tmp_path / "small.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_ladder_predicts_keeps_its_rungs_and_is_compared_with_the_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of the same size and length, but by another rate: no run that the ladder predicts.
    assert talaria("pretrain", "small.toml", "pretrain.optimizer.learning_rate=1e-3") == 0
    capsys.readouterr()
    assert talaria("ladder", "small.toml", "--json") == 0
    before = json.loads(capsys.readouterr().out)
    assert before["rungs"] == 9
    assert before["loss"]["low"] <= before["loss"]["value"] <= before["loss"]["high"]
    assert before["reached"] is None
    made = (folder / "runs" / "small" / "rung-1" / "done.json").stat().st_mtime_ns
    assert talaria("pretrain", "small.toml") == 0
    assert talaria("ladder", "small.toml", "--json") == 0
    after = json.loads(capsys.readouterr().out)
    assert (folder / "runs" / "small" / "rung-1" / "done.json").stat().st_mtime_ns == made
    assert after["loss"] == before["loss"]
    assert after["inside"] == (after["loss"]["low"] <= after["reached"] <= after["loss"]["high"])
    assert talaria("verify", "runs/small") == 0


def test_a_recipe_too_small_for_a_ladder_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert talaria("ladder", "small.toml", "model.depth=1", "model.d_model=32", "model.n_heads=1") == 2
    assert "too few for three smaller sizes" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_rates_and_batch_follow_the_stated_rule(name: str) -> None:
    """Batch as C^0.3271, AdamW's rate as C^-0.125, Muon's as the recipe has it; every rung at most an eighth of the
    run."""
    model = ModelSettings(depth=6, context=256)
    settings = PretrainSettings(
        tokens=50_000_000, batch_tokens=65_536, optimizer=OptimizerSettings(name=name, learning_rate=1e-2)
    )
    shape = resolve_shape(model, 4096)
    stage = PretrainStage(seed=0, model=model, pretrain=settings)
    own = Rung("pretrain", stage, shape, plan_pretraining(settings, shape, 10_000_000))
    rungs = plan_rungs(Recipe(model=model, pretrain=settings), own, 10_000_000, "recipe.toml")
    assert len(rungs) == 9
    assert len({rung.shape.n_params() for rung in rungs}) == 3
    whole = shape.flops_per_token(256) * own.plan.tokens
    for rung in rungs:
        times = rung.shape.flops_per_token(256) * rung.plan.tokens / whole
        assert times < 1 / 8
        assert rung.plan.learning_rate == pytest.approx(1e-2 * times**-0.125, rel=0.01)
        assert rung.plan.batch_tokens == pytest.approx(65_536 * times**0.3271, rel=0.05)
        assert rung.settings.pretrain.optimizer.muon_learning_rate == (1e-2 if name == "muon" else None)


def test_repeated_tokens_are_worth_less_each_time() -> None:
    assert worth_of(5e6, 1e7) == 5e6
    assert 3.5e7 < worth_of(4e7, 1e7) < 4e7
    assert worth_of(1e12, 1e7) == pytest.approx(1e7 * 16.387756, rel=1e-3)
