"""What surrounds the steps of every training loop: resume, metrics, checkpoints. The loops decide what a step is on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

from talaria.files import atomic_write, to_json
from talaria.model.device import default_device
from talaria.model.transformer import Transformer
from talaria.run import Metrics
from talaria.tokens.batches import Batch
from talaria.tokens.tokenizer import Tokenizer
from talaria.train import parallel
from talaria.train.allocator import keep_freed_memory
from talaria.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from talaria.train.cores import cores_for, forward_each, rows_each
from talaria.train.meter import Meter
from talaria.train.optim import make_optimizers, rate_share
from talaria.train.precision import dtype_name, training_dtype
from talaria.train.settings import OptimizerSettings, PlanSettings, TrainingPlan
from talaria.train.step import StepResult, StepState, optimisation_step, split_rows, summed_loss
from talaria.train.watch import Watch


class Batches(Protocol):
    """An endless stream of batches whose place can be saved."""

    def __next__(self) -> Batch: ...
    def state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...


class Session:
    """A training run that can be killed at any instant. `memory` is the loop's own JSON state, saved with the rest."""

    def __init__(
        self,
        title: str,
        folder: Path,
        model: Transformer,
        tokenizer: Tokenizer,
        batches: Batches,
        plan: TrainingPlan,
        optimizer: OptimizerSettings,
        *,
        dtype: str,
        compile: bool,
        document_attention: bool,
        checkpoint_every_seconds: float,
        seed: int,
        predicted: PlanSettings = PlanSettings(),  # noqa: B008 - frozen
    ) -> None:
        self.folder, self.batches, self.plan, self.seed = folder, batches, plan, seed
        self._tokenizer = tokenizer
        self.model = model.to(default_device())
        if default_device().type == "cpu":
            keep_freed_memory()
        self.memory: dict[str, Any] = {}
        self.step, self.tokens, self.positions = 0, 0, 0
        self._settings = optimizer
        self._dtype = training_dtype(dtype, default_device())
        self._optimizers = make_optimizers(self.model, optimizer, plan.learning_rate, self._dtype)
        self._state = StepState()
        self._document_attention = document_attention
        self._checkpoint_every_seconds = checkpoint_every_seconds
        if saved := checkpoints(folder / "checkpoints"):
            self.step, state = load_checkpoint(saved[-1], self.model, self._optimizers)
            batches.load_state(state["batches"])
            self._state, self.memory = StepState(**state["step"]), state["memory"]
            self.tokens, self.positions = state["tokens"], state["positions"]
        if compile:
            self.model.hidden = torch.compile(self.model.hidden)  # type: ignore[method-assign]
        self._is_first = parallel.rank() == 0
        # Without a checkpoint the metrics begin anew, too: rows of step 0 would otherwise stand twice.
        resume_step = self.step if saved else None
        self._metrics = Metrics(folder / "metrics.jsonl", resume_step) if self._is_first else None
        self.meter = Meter(
            title,
            plan.steps,
            self.step,
            self.model.shape.flops_per_token(plan.context),
            self._dtype,
            parallel.world_size(),
            show=self._is_first,
            plan=predicted,
        )
        self._title, self._predicted = title, predicted
        memory = self.memory.setdefault("watch", {}) if predicted.band else {}
        self._watch = Watch(predicted, memory, self.step / plan.steps) if predicted.band else None
        self._last_save = time.monotonic()

    @property
    def finished(self) -> bool:
        return self.step >= self.plan.steps

    def advance(self, measure_noise: bool = False) -> StepResult:
        """Take the next batch, make one step, write its row of metrics."""
        share = rate_share(self.step, self.plan.steps, self._settings)
        result = optimisation_step(
            self.model,
            self._optimizers,
            on_device(next(self.batches), default_device()),
            self._state,
            micro_rows=self.plan.micro_rows,
            rate_share=share,
            max_grad_norm=self._settings.max_grad_norm,
            document_attention=self._document_attention,
            measure_noise=measure_noise,
            dtype=self._dtype,
        )
        self.step += 1
        self.tokens, self.positions = self.tokens + result.n_tokens, self.positions + result.n_positions
        self.meter.count(self.step, result)
        self.write(learning_rate=share * self.plan.learning_rate, **self.meter.row(self.step, result))
        watch = None if result.skipped else self._watch
        found = None if watch is None else watch.see(self.step / self.plan.steps, result.loss)
        if found is not None:
            self._compare("mean training loss", "stretch_loss", *found)
        return result

    def _compare(self, what: str, key: str, loss: float, low: float, high: float) -> None:
        """Write what was expected beside what came, and warn where it came out of the band."""
        outside = not low <= loss <= high
        self.write(expected_low=low, expected_high=high, outside=outside or None, **{key: loss})
        if outside and self._is_first:
            side = "above" if loss > high else "below"
            Console(stderr=True, soft_wrap=True).print(
                f"{self._title}: {what} {loss:.3f} up to step {self.step:,} is {side} the predicted {low:.3f} to "
                f"{high:.3f}; {'look at rate, data and batch' if loss > high else 'the prediction was too high'}"
            )

    def write(self, **values: float | bool | None) -> None:
        """Add a row to metrics.jsonl."""
        if self._metrics:
            self._metrics.write(self.step, time=round(time.time()), tokens=self.tokens, **values)

    @torch.no_grad()
    def validation_loss(self, batches: Iterable[Batch]) -> float:
        """Mean loss in nats per counted token, written to the metrics."""
        total, count = 0.0, 0
        for batch in batches:
            rows, context = batch.inputs_BT.shape
            cores = cores_for(self.model, rows)
            # As in a step: whole batches would take more memory than training does.
            parts = split_rows(on_device(batch, default_device()), rows_each(self.model, rows, context, rows, cores))
            losses = forward_each(lambda part: summed_loss(self.model, part, self._document_attention), parts, cores)
            total += sum(map(float, losses))
            count += int(batch.loss_mask_BT.sum())
        loss = total / count
        self.write(validation_loss=loss)
        if self.finished and self._predicted.loss is not None:
            self._compare("held-out loss", "held_out_loss", loss, *self._predicted.loss)
        self.meter.pause()
        return loss

    def save_if_due(self) -> None:
        """Write a checkpoint if the last is old enough, and at the end."""
        if self.finished or time.monotonic() - self._last_save > self._checkpoint_every_seconds:
            self.save()

    def save(self) -> None:
        if self._is_first:
            state = {
                "batches": self.batches.state(),
                "step": asdict(self._state),
                "tokens": self.tokens,
                "positions": self.positions,
                "memory": self.memory,
            }
            folder = self.folder / "checkpoints"
            save_checkpoint(folder, self.step, self.model, self._tokenizer, self._optimizers, state)
            self.meter.pause()
        self._last_save = time.monotonic()

    def close(self, base: Mapping[str, Any] | None = None, **record: Any) -> None:
        """Write training.json: what the run cost, and the loop's own `record`.

        `base` is the training.json of the model that it began with, {} if that cost is unknown, None if it began with
        random weights. `tokens` have a loss, `positions` are computed; `..._total` is the cost with the base's.
        """
        if self._metrics:
            self._metrics.close()
            shape = self.model.shape
            own = {"tokens": self.tokens, "flops": shape.flops_per_token(self.plan.context) * self.positions}
            before = {"tokens_total": 0, "flops_total": 0} if base is None else base
            cost = {
                "params": shape.n_params(),
                "steps": self.step,
                "positions": self.positions,
                **own,
                **{f"{key}_total": _sum(value, before.get(f"{key}_total")) for key, value in own.items()},
                "seed": self.seed,
                "dtype": dtype_name(self._dtype),
                "plan": self.plan.model_dump(),
            }
            atomic_write(self.folder / "training.json", to_json(cost | record))
        parallel.barrier()


def _sum(own: int, before: int | None) -> int | None:
    return None if before is None else own + before


def on_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(tensor.to(device) for tensor in batch))
