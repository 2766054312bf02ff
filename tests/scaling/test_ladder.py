"""The ladder: rungs below a recipe's run, kept when current, and what they predict compared with what came."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from command_line import talaria

from talaria.errors import UserError
from talaria.files import atomic_write, to_json
from talaria.ladder import Rung, _band, _early_losses, climb, plan_rungs
from talaria.model.settings import ModelSettings, resolve_shape
from talaria.pipeline import PretrainStage, _predicted
from talaria.recipe import Recipe
from talaria.report import write_report
from talaria.run import output_sha256, read_metrics
from talaria.scaling.ray import predict_along
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
depth = 1
d_model = 64
n_heads = 4
context = 32

[pretrain]
tokens = 12000
validation_tokens = 512
batch_tokens = 128
optimizer = { learning_rate = 3e-3 }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    generator = np.random.default_rng(0)
    words = ["the", "wind", "turns", "a", "mill", "and", "grain", "falls", "to", "stone", "by", "night"]
    paragraphs = [" ".join(generator.choice(words, 40)) + "." for _ in range(400)]
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
    assert before["rungs"] == 10
    assert before["loss"]["low"] <= before["loss"]["value"] <= before["loss"]["high"]
    assert before["reached"] is None
    with open(folder / "runs" / "small" / "ladder.csv", encoding="utf-8") as file:
        points = [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]
    sizes, losses, early = ([row[name] for row in points] for name in ("params", "loss", "early_loss"))
    own_size = json.loads((folder / "runs" / "small" / "ladder.json").read_text())["target"]
    assert before["early_losses"] and min(early) > 0
    assert before["loss"]["value"] == pytest.approx(predict_along(sizes, losses, own_size, early=early).value, rel=1e-6)
    made = (folder / "runs" / "small" / "rung-1" / "done.json").stat().st_mtime_ns
    assert talaria("pretrain", "small.toml") == 0
    expected = [row for row in read_metrics(folder / "runs/small/pretrain/metrics.jsonl") if "expected_low" in row]
    assert len(expected) == 9 + 1, "nine stretches of training loss, then the held-out loss"
    told = [expected[-1][end] for end in ("expected_low", "expected_high")]
    assert "held_out_loss" in expected[-1] and not any("held_out_loss" in row for row in expected[:-1])
    assert told == pytest.approx([before["loss"]["low"], before["loss"]["high"]], rel=1e-6)
    assert f"It reached {expected[-1]['held_out_loss']:.3f}, " in write_report(folder / "runs" / "small").read_text()
    assert talaria("ladder", "small.toml", "--json") == 0
    after = json.loads(capsys.readouterr().out)
    assert (folder / "runs" / "small" / "rung-1" / "done.json").stat().st_mtime_ns == made
    assert after["loss"] == before["loss"]
    assert after["inside"] == (after["loss"]["low"] <= after["reached"] <= after["loss"]["high"])
    assert talaria("verify", "runs/small") == 0
    page = write_report(folder / "runs" / "small").read_text()
    assert "10 small runs predicted a held-out loss of" in page
    assert "Loss over size" in page
    assert "rung-3" not in page.split("Lineage")[0], "the rungs stand together, not as ten trainings"


def test_a_recipe_too_small_for_a_ladder_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert talaria("ladder", "small.toml", "model.depth=1", "model.d_model=32", "model.n_heads=1") == 2
    assert "too few for a law" in capsys.readouterr().err


def rungs_of(settings: PretrainSettings, n_tokens: int, **model: object) -> tuple[Rung, list[Rung]]:
    shape_settings = ModelSettings(**({"depth": 6, "context": 256} | model))  # type: ignore[arg-type]
    shape = resolve_shape(shape_settings, 4096)
    stage = PretrainStage(seed=3, model=shape_settings, pretrain=settings)
    own = Rung("pretrain", stage, shape, plan_pretraining(settings, shape, n_tokens))
    recipe = Recipe(run={"seed": 3}, model=shape_settings, pretrain=settings)  # type: ignore[arg-type]
    return own, plan_rungs(recipe, own, n_tokens, "recipe.toml")


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_rungs_follow_the_stated_rule(name: str) -> None:
    muon_rate = 3e-2 if name == "muon" else None
    optimizer = OptimizerSettings(name=name, learning_rate=1e-2, muon_learning_rate=muon_rate, weight_decay=0.1)
    own, rungs = rungs_of(PretrainSettings(tokens=50_000_000, batch_tokens=65_536, optimizer=optimizer), 60_000_000)
    assert len(rungs) == 10
    assert len({rung.shape.d_model for rung in rungs}) == 5
    assert {rung.settings.seed for rung in rungs} == {3, 1003}
    assert {rung.shape.n_layers for rung in rungs} == {own.shape.n_layers}
    for rung in rungs:
        times = rung.compute / own.compute
        assert times <= 1 / 8
        assert rung.plan.tokens / rung.size == pytest.approx(own.plan.tokens / own.size, rel=0.02)
        assert rung.plan.batch_tokens == pytest.approx(65_536 * times**0.3271, rel=0.03)
        found = rung.settings.pretrain.optimizer
        assert found.learning_rate == pytest.approx(1e-2 * times**-0.125, rel=1e-3)
        if muon_rate is not None:
            assert found.muon_learning_rate == pytest.approx(muon_rate * times**-0.125, rel=1e-3)
        shrunk = found.learning_rate * found.weight_decay * rung.plan.steps
        assert shrunk == pytest.approx(1e-2 * 0.1 * own.plan.steps, rel=0.02)


def test_a_step_that_was_skipped_and_a_stretch_without_a_law_end_no_ladder(tmp_path: Path) -> None:
    """The bugs: one NaN among the losses, or a first stretch in which larger models are behind, and the prediction ends
    in an error after all its rungs are trained."""
    own, rungs = rungs_of(PretrainSettings(tokens=50_000_000), 60_000_000)
    for number, rung in enumerate(rungs):
        loss = 3 + (rung.size / 1e4) ** -0.3 + 1e-3 * (number % 2)
        losses = [5 + rung.size / 1e7 if step < 20 else loss for step in range(100)]
        rows: list[dict[str, object]] = [{"step": step + 1, "train_loss": value} for step, value in enumerate(losses)]
        rows.insert(50, {"step": 50, "train_loss": math.nan, "skipped": True})
        rows.append({"step": 100, "validation_loss": loss})
        (tmp_path / rung.name).mkdir()
        (tmp_path / rung.name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    band = _band(rungs, own, tmp_path)
    assert [stretch.begin for stretch in band] == pytest.approx([n / 10 for n in range(2, 10)])
    assert all(stretch.low < 3 + (own.size / 1e4) ** -0.3 < stretch.high for stretch in band)


def test_early_losses_are_told_where_they_share_the_floor_of_the_final_ones(tmp_path: Path) -> None:
    """The bugs: of text read before the loss is lower, in warm-up it is higher, and other text has another floor."""
    _, rungs = rungs_of(PretrainSettings(tokens=50_000_000), 60_000_000)
    for number, rung in enumerate(rungs):
        losses = [number + (9.0 if step < 20 else 3.0 if step < 50 else 1.0) for step in range(100)]
        rows = [{"step": step + 1, "train_loss": loss} for step, loss in enumerate(losses)]
        (tmp_path / rung.name).mkdir()
        (tmp_path / rung.name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = [number + 1.0 for number in range(len(rungs))]
    expected = [number + 3.0 for number in range(len(rungs))]

    def told(n_tokens: int, held_out: list[float], **changed: object) -> list[float] | None:
        of = PretrainSettings(**({"tokens": 50_000_000} | changed))  # type: ignore[arg-type]
        return _early_losses(rungs, rungs_of(of, n_tokens)[0], n_tokens, held_out, tmp_path)

    assert told(60_000_000, held_out) == pytest.approx(expected), "from a fifth to half of a run"
    assert told(25_000_500, held_out, epochs=2.0, tokens=None) == pytest.approx(expected), "repeated from there on"
    assert told(25_000_000, held_out, epochs=2.0, tokens=None) == pytest.approx(expected), "whatever a batch rounds to"
    assert told(24_000_000, held_out) is None
    assert told(60_000_000, held_out, data_share=0.4) is None
    assert told(60_000_000, [1.05 * loss for loss in held_out]) is None
    assert told(60_000_000, held_out, optimizer={"warmup_share": 0.3}) is None
    stable = {"schedule": "warmup-stable-decay", "decay_share": 0.2}
    assert told(60_000_000, held_out, optimizer=stable) == pytest.approx(expected)
    assert told(60_000_000, held_out, optimizer=stable | {"decay_share": 0.6}) is None


def test_a_prediction_is_of_one_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bug: after a change of [corpus] or [tokenizer] the run was held against what other text had told."""
    settings = PretrainStage(seed=0, model=ModelSettings(), pretrain=PretrainSettings(tokens=1000))
    manifest = tmp_path / "tokenizer" / "manifest.json"
    atomic_write(manifest, to_json({"outputs": {"shards/train-0.bin": "ab"}, "seconds": 1.0}))
    plan = {"loss": [2.0, 3.0], "band": []}
    told = {"predicted_run": settings.model_dump(mode="json"), "plan": plan}
    atomic_write(tmp_path / "ladder.json", to_json(told))
    assert _predicted(settings, None, tmp_path).loss is None, "of an unknown text"
    atomic_write(tmp_path / "ladder.json", to_json(told | {"text_sha256": output_sha256(tmp_path / "tokenizer")}))
    assert _predicted(settings, None, tmp_path).loss == (2.0, 3.0)
    atomic_write(manifest, to_json({"outputs": {"shards/train-0.bin": "ab"}, "seconds": 2.0}))
    assert _predicted(settings, None, tmp_path).loss == (2.0, 3.0), "made again, it is the same text"
    capsys.readouterr()
    atomic_write(manifest, to_json({"outputs": {"shards/train-0.bin": "cd"}, "seconds": 1.0}))
    assert _predicted(settings, None, tmp_path).loss is None
    assert "ladder.json is of other text, so it predicts nothing of this run" in capsys.readouterr().err
    assert _predicted(settings.model_copy(update={"seed": 1}), None, tmp_path).loss is None
    assert "ladder.json is of other settings" in capsys.readouterr().err


def test_a_rung_that_diverged_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def own(recipe: Recipe, at: Path) -> tuple[Rung, int]:
        assert recipe.pretrain is not None
        shape = resolve_shape(recipe.model, 300)
        stage = PretrainStage(seed=0, model=recipe.model, pretrain=recipe.pretrain)
        return Rung("pretrain", stage, shape, plan_pretraining(recipe.pretrain, shape, 60_000)), 60_000

    monkeypatch.setattr("talaria.ladder.run_stage", lambda at, stage: False)
    monkeypatch.setattr("talaria.ladder._own", own)
    monkeypatch.setattr("talaria.ladder._held_out_loss", lambda folder: math.nan)
    with pytest.raises(UserError, match=r"rung-1: a held-out loss of nan.*lower pretrain\.optimizer\.learning_rate"):
        climb(Path("small.toml"), [])


def test_heads_and_widths_are_drawn_in_together() -> None:
    own, rungs = rungs_of(PretrainSettings(tokens=10_000_000), 10_000_000, n_heads=8, n_kv_heads=2, d_head=48)
    for rung in rungs:
        shape, share = rung.shape, rung.shape.d_model / own.shape.d_model
        assert shape.n_heads == 4 * shape.n_kv_heads
        assert shape.d_head % 2 == 0
        assert shape.d_attention == pytest.approx(share * own.shape.d_attention, rel=0.15)
        assert shape.d_ff == pytest.approx(share * own.shape.d_ff, rel=0.08)


def test_a_rung_repeats_its_text_as_often_as_the_run() -> None:
    """The bug: the run reads a book three times, the rungs a twelfth of it once, and what repetition costs is nowhere
    in the law."""
    for settings in (PretrainSettings(epochs=3.0), PretrainSettings(epochs=6.0, data_share=0.5)):
        own, rungs = rungs_of(settings, 4_000_000)
        for rung in rungs:
            seen = rung.settings.pretrain.data_share * 4_000_000
            assert rung.plan.tokens / seen == pytest.approx(settings.epochs, rel=0.01)
            assert rung.plan.tokens / rung.size == pytest.approx(own.plan.tokens / own.size, rel=0.01)
    _, rungs = rungs_of(PretrainSettings(epochs=1.0), 4_000_000)
    assert all(rung.settings.pretrain.data_share == 1.0 for rung in rungs), "text that is not repeated is not narrowed"
