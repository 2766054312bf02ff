"""Small runs of a recipe that tell the loss of its own run before it is paid for.

    talaria ladder RECIPE          # trains the rungs in the run's folder, fits, predicts; again after `talaria run`:
    was it right?

Nine rungs, three sizes by three lengths, take two fifths of the demo's compute (a sixth, where the output head is
small beside the layers); each is a stage like any other, so that what is finished is kept and what was killed
resumes. Chinchilla's law goes through their held-out losses, over parameters without embeddings and tokens at their
worth when repeated (Muennighoff et al. 2023).

Rates and batch follow the rung's compute C as DeepSeek LLM's do (Bi et al. 2024, section 3.1), through the recipe's
own values: batch as C^0.3271, AdamW's rate as C^-0.125. Muon's rate of matrices is scaled to their shape already and
stays.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from talaria.errors import UsageError
from talaria.model.settings import ModelSettings, resolve_shape
from talaria.model.shape import ModelShape
from talaria.pipeline import PretrainStage, console, stages
from talaria.preflight import check_sources
from talaria.recipe import Recipe, read_recipe, run_path
from talaria.run import Stage, atomic_write, is_current, lock, read_metrics, run_stage
from talaria.scaling.diagnosis import diagnose
from talaria.scaling.fit import Fit, fit_law
from talaria.scaling.planner import worth_of
from talaria.scaling.points import Points
from talaria.train.settings import TrainingPlan, plan_pretraining

_SIZES = (1 / 4, 1 / 10, 1 / 25)
"""Of the recipe's parameters without embeddings."""
_LENGTHS = (1 / 3, 1 / 6, 1 / 12)
"""Of the recipe's tokens."""
LEVEL = 0.8


@dataclass(frozen=True)
class Rung:
    """One small run: its stage's settings and its plan."""

    name: str
    settings: PretrainStage
    shape: ModelShape
    plan: TrainingPlan


@dataclass(frozen=True)
class Prediction:
    """The loss that the rungs predict for the recipe's own run, and what that run reached, None before it is made."""

    rungs: int
    larger: float
    """The recipe's compute over that of the largest rung."""
    value: float
    low: float
    high: float
    reached: float | None
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        inside = None if self.reached is None else self.low <= self.reached <= self.high
        loss = {"value": self.value, "low": self.low, "high": self.high, "level": LEVEL}
        told = {"rungs": self.rungs, "times_larger": self.larger, "loss": loss}
        return told | {"reached": self.reached, "inside": inside, "warnings": self.warnings}


def climb(path: Path, overrides: list[str], seed: int = 0) -> Prediction:
    """Train the rungs of a recipe where they are not current, and predict its run. UsageError where the recipe is too
    small."""
    recipe = read_recipe(path, overrides)
    if recipe.pretrain is None or recipe.tokenizer is None:
        raise UsageError(f"{path}: a ladder needs the tables [tokenizer] and [pretrain]; add them")
    check_sources(recipe, path, "pretrain")
    at = run_path(recipe)
    with lock(at):
        for stage in stages(recipe):
            if stage.name not in ("world", "corpus", "tokenizer"):
                break
            run_stage(at, stage)
        own, n_tokens = _own(recipe, at)
        rungs = plan_rungs(recipe, own, n_tokens, str(path))
        losses = []
        for number, rung in enumerate(rungs, 1):
            ran = run_stage(at, _stage(rung, at))
            losses.append(_held_out_loss(at / rung.name))
            size = f"{rung.shape.n_params_non_embedding():,} parameters on {rung.plan.tokens:,} tokens"
            kept = "" if ran else " (is current)"
            console.print(f"rung {number} of {len(rungs)}: {size}: loss {losses[-1]:.4f}{kept}")
        points = _points(rungs, losses, n_tokens)
        _write_points(at / "ladder.csv", points)
        fit = fit_law("chinchilla", points, seed=seed)
        return _predict(fit, points, rungs, own, n_tokens, at)


def plan_rungs(recipe: Recipe, own: Rung, n_tokens: int, place: str) -> list[Rung]:
    """Three sizes by three lengths below the recipe's own run. UsageError where no three sizes lie below it."""
    shapes = list(dict.fromkeys(_smaller(recipe.model, own.shape, share) for share in _SIZES))
    if len(shapes) < 3:
        raise UsageError(
            f"{place}: {own.shape.n_params_non_embedding():,} parameters without embeddings are too few for three "
            "smaller sizes; give a larger [model]"
        )
    whole = _compute(own.shape, own.plan)
    rungs: list[Rung] = []
    for model in shapes:
        shape = resolve_shape(model, own.shape.vocab_size)
        for share in _LENGTHS:
            tokens = round(own.plan.tokens * share)
            times = shape.flops_per_token(own.plan.context) * tokens / whole
            optimizer = own.settings.pretrain.optimizer.model_copy(
                update={
                    "learning_rate": own.plan.learning_rate * times**-0.125,
                    "muon_learning_rate": own.settings.pretrain.optimizer.muon_learning_rate or own.plan.learning_rate
                    if own.settings.pretrain.optimizer.name == "muon"
                    else None,
                }
            )
            batch = max(own.plan.context, round(own.plan.batch_tokens * times**0.3271))
            settings = own.settings.pretrain.model_copy(
                update={"tokens": tokens, "epochs": None, "batch_tokens": batch, "optimizer": optimizer}
            )
            stage = PretrainStage(seed=recipe.run.seed, model=model, pretrain=settings)
            rungs.append(Rung(f"rung-{len(rungs) + 1}", stage, shape, plan_pretraining(settings, shape, n_tokens)))
    return rungs


def _own(recipe: Recipe, at: Path) -> tuple[Rung, int]:
    from talaria.tokens.shards import Shards
    from talaria.tokens.tokenizer import Tokenizer

    assert recipe.pretrain is not None
    vocab_size = Tokenizer.load(at / "tokenizer" / "tokenizer").vocab_size
    n_tokens = Shards(at / "tokenizer" / "shards", "train", verify=False).n_tokens
    shape = resolve_shape(recipe.model, vocab_size)
    settings = PretrainStage(seed=recipe.run.seed, model=recipe.model, pretrain=recipe.pretrain)
    return Rung("pretrain", settings, shape, plan_pretraining(recipe.pretrain, shape, n_tokens)), n_tokens


def _smaller(model: ModelSettings, own: ModelShape, share: float) -> ModelSettings:
    """The recipe's model with depth and width drawn in, nearest to `share` of its parameters without embeddings."""
    wanted = own.n_params_non_embedding() * share
    best, best_miss = model, math.inf
    head = min(own.d_head, 32)
    proportion = math.log(own.d_model / own.n_layers)
    for depth in range(1, own.n_layers + 1):
        for heads in range(1, own.d_model // head + 1):
            small = model.model_copy(
                update={
                    "depth": depth,
                    "n_layers": None,
                    "d_model": heads * head,
                    "n_heads": heads,
                    "n_kv_heads": None,
                    "d_head": None,
                    "d_ff": None,
                }
            )
            shape = resolve_shape(small, own.vocab_size)
            miss = abs(math.log(shape.n_params_non_embedding() / wanted))
            miss += 0.1 * abs(math.log(shape.d_model / depth) - proportion)
            if miss < best_miss:
                best, best_miss = small, miss
    return best


def _stage(rung: Rung, at: Path) -> Stage:
    def work(folder: Path) -> None:
        from talaria.train.pretrain import pretrain

        pretrain(rung.settings.pretrain, rung.settings.model, at / "tokenizer", rung.settings.seed, folder)

    return Stage(rung.name, rung.settings, {"tokenizer": at / "tokenizer"}, ("tokenizer",), work)


def _held_out_loss(folder: Path) -> float:
    losses = [row["validation_loss"] for row in read_metrics(folder / "metrics.jsonl") if "validation_loss" in row]
    if not losses:
        raise UsageError(f"{folder}: no held-out loss; a ladder needs tokenizer.validation_fraction above 0")
    return float(losses[-1])


def _compute(shape: ModelShape, plan: TrainingPlan) -> float:
    return float(shape.flops_per_token(plan.context)) * plan.tokens


def _points(rungs: list[Rung], losses: list[float], n_tokens: int) -> Points:
    params = np.array([rung.shape.n_params_non_embedding() for rung in rungs], dtype=np.float64)
    tokens = np.array([worth_of(rung.plan.tokens, n_tokens) for rung in rungs])
    return Points(params, tokens, 6 * params * tokens, np.array(losses), np.arange(2, len(rungs) + 2))


def _write_points(path: Path, points: Points) -> None:
    """The rungs as `talaria fit` reads them."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["params", "tokens", "loss"])
    writer.writerows(zip(points.params.tolist(), points.tokens.tolist(), points.loss.tolist(), strict=True))
    atomic_write(path, buffer.getvalue())


def _predict(fit: Fit, points: Points, rungs: list[Rung], own: Rung, n_tokens: int, at: Path) -> Prediction:
    value, low, high = fit.predict_loss(
        own.shape.n_params_non_embedding(), worth_of(own.plan.tokens, n_tokens), level=LEVEL
    )
    larger = _compute(own.shape, own.plan) / max(_compute(rung.shape, rung.plan) for rung in rungs)
    # Another seed, rate or optimizer is another run, of which nothing was predicted.
    reached = _held_out_loss(at / "pretrain") if is_current(at, _stage(own, at)) else None
    warnings = diagnose(fit, points)
    prediction = Prediction(len(rungs), larger, value, low, high, reached, warnings)
    atomic_write(at / "ladder.json", json.dumps(prediction.to_json(), indent=1) + "\n")
    return prediction


def told(prediction: Prediction) -> str:
    """The prediction in words."""
    words = (
        f"{prediction.rungs} rungs predict a loss of {prediction.value:.3f} ({100 * LEVEL:.0f} %: "
        f"{prediction.low:.3f} to "
        f"{prediction.high:.3f}) for the run {prediction.larger:.1f} times as large as the largest of them"
    )
    if prediction.reached is None:
        return f"{words}; make it with talaria run, then ask again"
    inside = prediction.low <= prediction.reached <= prediction.high
    return f"{words}; it reached {prediction.reached:.3f}, {'inside' if inside else 'outside'}"
