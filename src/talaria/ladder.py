"""Small runs of a recipe that tell the loss of its own run before it is paid for.

    talaria ladder RECIPE          # trains the rungs in the run's folder, fits, predicts; again after `talaria run`:
    was it right?

Ten rungs (eight where the recipe is narrow), five sizes with two seeds each, of an eighth of the recipe's compute down
to a thirty-second; each is a stage like any other, so that what is finished is kept and what was killed resumes. All
lie on one ray through the recipe's own run, along which everything grows in proportion, and a power law with a floor
goes through their held-out losses (`scaling/ray.py`).

The rule, for a rung of s times the recipe's parameters without embeddings and c times its compute:

- depth stays, widths and heads are drawn in together: layers come in whole numbers, and one layer alone learns less
  than a share of what four learn;
- tokens go as s, and so does the share of the text that is seen at all: tokens a parameter and epochs are the
  recipe's;
- batch goes as c^0.3271 (Bi et al. 2024, section 3.1);
- the rates of AdamW and of Muon's matrices go as c^-0.125 (the same), on the ray one over the root of the width;
- weight decay goes so that rate x decay x steps stays (Wang and Aitchison 2024);
- warm-up and decay are shares of the steps, as everywhere; context, schedule and held-out text are the recipe's.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talaria.errors import UsageError, UserError
from talaria.files import atomic_write
from talaria.model.settings import ModelSettings, resolve_shape
from talaria.model.shape import ModelShape
from talaria.pipeline import LADDER, PretrainStage, console, pretrain_stage, stages
from talaria.preflight import check_sources
from talaria.recipe import Recipe, read_recipe, run_path
from talaria.run import is_current, lock, output_sha256, read_metrics, run_stage
from talaria.scaling.ray import RayPrediction, predict_along
from talaria.train.settings import PretrainSettings, Stretch, TrainingPlan, plan_pretraining

_SHARES = (1 / 8, 1 / 11, 1 / 16, 1 / 23, 1 / 32)
"""Of the recipe's compute: the most that the rungs of each size may take."""
_FEWEST_SIZES = 4
_NARROWEST = 16
_SEEDS = (0, 1000)
"""Added to the recipe's own: far apart, so that ladders of neighbouring seeds share no rung."""
_STRETCHES = 10
"""Of a run, whose mean training losses are predicted like the final loss."""
_EARLY = (0.2, 0.5)
"""Of a run: past the first drop, and far above its end."""
_SAME_TEXT = 0.03
"""Held-out losses are within so much of the training losses at the end of a run, or they have floors of their own."""
_BATCH, _RATE = 0.3271, -0.125
"""Exponents of compute (Bi et al. 2024, section 3.1)."""
LEVEL = 0.8
_BAND_LEVEL = 0.98
"""Of a stretch: a run that goes as predicted should be told so, and there are nine of them."""


@dataclass(frozen=True)
class Rung:
    """One small run: its stage's settings and its plan."""

    name: str
    settings: PretrainStage
    shape: ModelShape
    plan: TrainingPlan

    @property
    def size(self) -> int:
        """Its place on the ray: parameters without embeddings."""
        return self.shape.n_params_non_embedding()

    @property
    def compute(self) -> float:
        return float(self.shape.flops_per_token(self.plan.context)) * self.plan.tokens


@dataclass(frozen=True)
class Prediction:
    """The loss that the rungs predict for the recipe's own run, and what that run reached, None before it is made."""

    rungs: int
    larger: float
    """The recipe's compute over that of the largest rung."""
    law: RayPrediction
    early_losses: bool
    """Whether the law knows the rungs' early losses."""
    reached: float | None

    @property
    def inside(self) -> bool | None:
        return None if self.reached is None else self.law.low <= self.reached <= self.law.high

    def to_json(self) -> dict[str, Any]:
        law = self.law
        return {
            "rungs": self.rungs,
            "times_larger": self.larger,
            "loss": {"value": law.value, "low": law.low, "high": law.high, "level": law.level},
            "reached": self.reached,
            "inside": self.inside,
            "seed_noise": law.seed_noise,
            "scatter": law.scatter,
            "floor": law.floor,
            "gamma": law.gamma,
            "kappa": law.kappa,
            "early_losses": self.early_losses,
            "warnings": law.warnings,
        }


def climb(path: Path, overrides: list[str], pictures: Path | None = None) -> Prediction:
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
            ran = run_stage(at, pretrain_stage(rung.settings, at, None, rung.name))
            losses.append(_held_out_loss(at / rung.name))
            if not math.isfinite(losses[-1]):
                raise UserError(
                    f"{at / rung.name}: a held-out loss of {losses[-1]}, which no law passes through; lower "
                    "pretrain.optimizer.learning_rate"
                )
            size = f"{rung.size:,} parameters on {rung.plan.tokens:,} tokens"
            kept = "" if ran else " (is current)"
            console.print(f"rung {number} of {len(rungs)}: {size}: loss {losses[-1]:.4f}{kept}")
        early = _early_losses(rungs, own, n_tokens, losses, at)
        _write_points(at / "ladder.csv", rungs, losses, early)
        law = predict_along([rung.size for rung in rungs], losses, own.size, LEVEL, recipe.run.seed, early)
        # Another seed, rate or optimizer is another run, of which nothing was predicted.
        reached = _held_out_loss(at / "pretrain") if is_current(at, pretrain_stage(own.settings, at, None)) else None
        larger = own.compute / max(rung.compute for rung in rungs)
        prediction = Prediction(len(rungs), larger, law, early is not None, reached)
        plan = {"loss": (law.low, law.high), "band": [stretch.model_dump() for stretch in _band(rungs, own, at)]}
        told = prediction.to_json() | {"predicted_run": own.settings.model_dump(mode="json"), "plan": plan}
        told |= {"points": [[rung.size, loss] for rung, loss in zip(rungs, losses, strict=True)], "target": own.size}
        told |= {"law": law.at, "text_sha256": output_sha256(at / "tokenizer")}
        atomic_write(at / LADDER, json.dumps(told, indent=1) + "\n")
        if pictures is not None:
            from talaria.scaling.pictures import draw_ray

            draw_ray([rung.size for rung in rungs], losses, own.size, law, reached, pictures)
        return prediction


def plan_rungs(recipe: Recipe, own: Rung, n_tokens: int, place: str) -> list[Rung]:
    """Five sizes with two seeds each on the ray below the recipe's own run, the largest first. UsageError where fewer
    than four sizes lie below it."""
    narrower = [_narrowed(recipe, own, width) for width in range(_NARROWEST, own.shape.d_model, 2)]
    widest: dict[float, tuple[ModelSettings, ModelShape]] = {}
    for share in _SHARES:
        for model, shape in narrower:
            if _compute_on_ray(shape, own) <= share * own.compute:
                widest[share] = (model, shape)
    sizes = list({shape.d_model: (model, shape) for model, shape in widest.values()}.values())
    if len(sizes) < _FEWEST_SIZES:
        raise UsageError(
            f"{place}: below {own.size:,} parameters without embeddings there are {len(sizes)} sizes of an eighth of "
            f"the compute or less, too few for a law; give a wider [model]"
        )
    rungs: list[Rung] = []
    for model, shape in sizes:
        settings = _settings_on_ray(recipe, own, shape, n_tokens)
        plan = plan_pretraining(settings, shape, n_tokens)
        for seed in _SEEDS:
            stage = PretrainStage(seed=recipe.run.seed + seed, model=model, pretrain=settings)
            rungs.append(Rung(f"rung-{len(rungs) + 1}", stage, shape, plan))
    return rungs


def _compute_on_ray(shape: ModelShape, own: Rung) -> float:
    share = shape.n_params_non_embedding() / own.size
    return float(shape.flops_per_token(own.plan.context)) * own.plan.tokens * share


def _settings_on_ray(recipe: Recipe, own: Rung, shape: ModelShape, n_tokens: int) -> PretrainSettings:
    """[pretrain] of a rung: the rule on top of this file."""
    assert recipe.pretrain is not None
    settings, plan = recipe.pretrain, own.plan
    share = shape.n_params_non_embedding() / own.size
    times = _compute_on_ray(shape, own) / own.compute
    rows = max(1, round(plan.rows * times**_BATCH))
    tokens = round(plan.tokens * share)
    repeats = plan.tokens > settings.data_share * n_tokens
    optimizer, rate = settings.optimizer, plan.learning_rate * times**_RATE
    rates: dict[str, float] = {"learning_rate": rate}
    if optimizer.name == "muon":
        rates["muon_learning_rate"] = (optimizer.muon_learning_rate or plan.learning_rate) * times**_RATE
    steps = tokens / (rows * plan.context)
    # What decay takes of the weights over a whole run is 1 - exp(-rate x decay x steps).
    rates["weight_decay"] = optimizer.weight_decay * plan.steps / steps / times**_RATE
    return settings.model_copy(
        update={
            "tokens": tokens,
            "epochs": None,
            "batch_tokens": rows * plan.context,
            "data_share": settings.data_share * share if repeats else settings.data_share,
            "validate_every_steps": None,
            "optimizer": optimizer.model_copy(update=rates),
        }
    )


def _narrowed(recipe: Recipe, own: Rung, width: int) -> tuple[ModelSettings, ModelShape]:
    """The recipe's model with all its widths drawn in to `width` over its own."""
    whole = own.shape
    share = width / whole.d_model
    kv_heads = max(1, round(whole.n_kv_heads * share))
    heads = kv_heads * (whole.n_heads // whole.n_kv_heads)
    model = recipe.model.model_copy(
        update={
            "d_model": width,
            "n_heads": heads,
            "n_kv_heads": kv_heads,
            "d_head": max(2, 2 * round(whole.d_attention * share / heads / 2)),
            "d_ff": max(8, 8 * round(whole.d_ff * share / 8)),
        }
    )
    return model, resolve_shape(model, whole.vocab_size)


def _own(recipe: Recipe, at: Path) -> tuple[Rung, int]:
    from talaria.tokens.shards import Shards
    from talaria.tokens.tokenizer import Tokenizer

    assert recipe.pretrain is not None
    vocab_size = Tokenizer.load(at / "tokenizer" / "tokenizer").vocab_size
    n_tokens = Shards(at / "tokenizer" / "shards", "train", verify=False).n_tokens
    shape = resolve_shape(recipe.model, vocab_size)
    settings = PretrainStage(seed=recipe.run.seed, model=recipe.model, pretrain=recipe.pretrain)
    return Rung("pretrain", settings, shape, plan_pretraining(recipe.pretrain, shape, n_tokens)), n_tokens


def _held_out_loss(folder: Path) -> float:
    losses = [row["validation_loss"] for row in read_metrics(folder / "metrics.jsonl") if "validation_loss" in row]
    if not losses:
        raise UsageError(f"{folder}: no held-out loss; a ladder needs tokenizer.validation_fraction above 0")
    return float(losses[-1])


def _band(rungs: list[Rung], own: Rung, at: Path) -> list[Stretch]:
    """Where the mean training loss of each stretch of the recipe's run is expected: on the ray it follows a law of its
    own at every share of the run, as the final loss does. The first stretch, with the warm-up in it, is left out, and
    every one that no law passes through."""
    curves = [_training_losses(at / rung.name) for rung in rungs]
    if any(len(curve) < 2 * _STRETCHES for curve in curves):
        return []
    band = []
    for number in range(1, _STRETCHES):
        begin, end = number / _STRETCHES, (number + 1) / _STRETCHES
        means = [_mean(curve[round(begin * len(curve)) : round(end * len(curve))]) for curve in curves]
        try:
            law = predict_along([rung.size for rung in rungs], means, own.size, _BAND_LEVEL)
        except UserError:  # early on the loss may not fall with size yet
            continue
        band.append(Stretch(begin=begin, end=end, low=law.low, high=law.high))
    return band


def _early_losses(rungs: list[Rung], own: Rung, n_tokens: int, losses: list[float], at: Path) -> list[float] | None:
    """Mean training loss of each rung between two shares of its run; None where it would not tell the floor of the
    held-out `losses`: it is of text read before, lies in warm-up or decay, the held-out text is of another kind, or a
    run has too few steps."""
    begin, end = _EARLY
    settings, optimizer = own.settings.pretrain, own.settings.pretrain.optimizer
    # Tokens are rounded to whole batches.
    if end * (own.plan.tokens - own.plan.batch_tokens) > settings.data_share * n_tokens:
        return None
    decays_from = 1 - optimizer.decay_share if optimizer.schedule == "warmup-stable-decay" else 1.0
    if optimizer.warmup_share > begin or decays_from < end:
        return None
    curves = [_training_losses(at / rung.name) for rung in rungs]
    if any(len(curve) < 2 * _STRETCHES for curve in curves):
        return None
    last = [_mean(curve[round((1 - 1 / _STRETCHES) * len(curve)) :]) for curve in curves]
    if abs(_mean(last) / _mean(losses) - 1) > _SAME_TEXT:
        return None
    return [_mean(curve[round(begin * len(curve)) : round(end * len(curve))]) for curve in curves]


def _training_losses(folder: Path) -> list[float]:
    """Of every step that was taken: a skipped one has a loss that is not finite."""
    rows = read_metrics(folder / "metrics.jsonl")
    losses = [float(row["train_loss"]) for row in rows if row.get("train_loss") is not None and not row.get("skipped")]
    return [loss for loss in losses if math.isfinite(loss)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _write_points(path: Path, rungs: list[Rung], losses: list[float], early: list[float] | None) -> None:
    """The rungs as `talaria fit` reads them, whose laws of size and length they cannot carry: both grow together."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["params", "tokens", "flops", "loss", "seed", "early_loss"])
    for number, (rung, loss) in enumerate(zip(rungs, losses, strict=True)):
        before = "" if early is None else early[number]
        writer.writerow([rung.size, rung.plan.tokens, rung.compute, loss, rung.settings.seed, before])
    atomic_write(path, buffer.getvalue())


def told(prediction: Prediction) -> str:
    """The prediction in words."""
    law = prediction.law
    words = (
        f"{prediction.rungs} rungs predict a loss of {law.value:.3f} ({100 * law.level:.0f} %: {law.low:.3f} to "
        f"{law.high:.3f}) for the run of {prediction.larger:.1f} times the compute of the largest of them"
    )
    if prediction.reached is None:
        return f"{words}; make it with talaria run, then ask again"
    return f"{words}; it reached {prediction.reached:.3f}, {'inside' if prediction.inside else 'outside'}"
