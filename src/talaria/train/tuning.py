"""What surrounds the updates of a loop that learns from preferences or rewards: resume, metrics, checkpoints.

`Session` does the same for next-token training; here the loop brings its own loss, and a step may be many updates (a
PPO iteration). A loop draws everything from its seed and the number of the step, so that nothing but weights, moments
and `memory` has to be saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from talaria.errors import UsageError
from talaria.files import atomic_write, to_json
from talaria.model.device import default_device
from talaria.model.transformer import Transformer
from talaria.run import Metrics
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.allocator import keep_freed_memory
from talaria.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from talaria.train.cores import backward_each, cores_for
from talaria.train.optim import make_optimizers, rate_share
from talaria.train.precision import training_dtype
from talaria.train.settings import OptimizerSettings
from talaria.train.step import StepState, apply_gradients

M = TypeVar("M")


class Tuning:
    """A loop of `steps` steps over `modules` (name -> module) that can be killed at any instant. Each module has its
    own optimizer and its gradient is clipped by itself; by the size of `trunk` work is spread over cores."""

    def __init__(
        self,
        title: str,
        folder: Path,
        modules: dict[str, nn.Module],
        trunk: Transformer,
        tokenizer: Tokenizer,
        optimizer: OptimizerSettings,
        steps: int,
        *,
        learning_rates: dict[str, float],
        checkpoint_every_seconds: float,
        seed: int,
        dtype: str = "float32",
    ) -> None:
        if optimizer.name != "adamw":
            raise UsageError(f"{title}.optimizer.name={optimizer.name}: this stage knows adamw only")
        if default_device().type == "cpu":
            keep_freed_memory()
        self._dtype = training_dtype(dtype, default_device())
        self.folder, self.steps, self.seed, self.step = folder, steps, seed, 0
        self.memory: dict[str, Any] = {}
        self.modules = nn.ModuleDict(modules).to(default_device())
        self._trunk, self._tokenizer, self._settings = trunk, tokenizer, optimizer
        self._optimizers = {
            name: make_optimizers(module, optimizer, learning_rates[name])["adamw"] for name, module in modules.items()
        }
        self._state = StepState()
        self._every = checkpoint_every_seconds
        saved = checkpoints(folder / "checkpoints")
        if saved:
            self.step, state = load_checkpoint(saved[-1], self.modules, self._optimizers)
            self._state, self.memory = StepState(**state["step"]), state["memory"]
        self._metrics = Metrics(folder / "metrics.jsonl", self.step if saved else None)
        self._last_save = time.monotonic()
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self.progress.add_task(title, total=steps, completed=self.step, told="")

    @property
    def finished(self) -> bool:
        return self.step >= self.steps

    @property
    def rate_share(self) -> float:
        return rate_share(self.step, self.steps, self._settings)

    def cores(self, rows: int) -> int:
        """Micro-batches that go side by side."""
        return cores_for(self._trunk, rows)

    def backward(self, loss_of: Callable[[M], Tensor], micro_batches: Sequence[M], divisor: float, name: str) -> float:
        """Add the gradient of the summed losses over `divisor` for the module `name`, "" for all; returns the sum."""
        module = self.modules[name] if name else self.modules
        cores = self.cores(len(micro_batches))

        def loss_in_dtype(micro: M) -> Tensor:
            with self.products():  # autocast is a thread's own
                return loss_of(micro)

        return sum(backward_each(loss_in_dtype, list(micro_batches), module, divisor, cores))

    def products(self) -> torch.autocast:
        """A context in which matrix products are of the loop's dtype."""
        return torch.autocast(default_device().type, dtype=self._dtype, enabled=self._dtype != torch.float32)

    def update(self, loss: float) -> float:
        """One update of every module from the gradients so far; returns the first one's norm before clipping."""
        norm, _ = apply_gradients(
            list(self.modules.values()),
            self._optimizers,
            self._state,
            loss,
            rate_share=self.rate_share,
            max_grad_norm=self._settings.max_grad_norm,
        )
        return norm

    def end_step(self, told: str, **values: float | bool | None) -> None:
        """Count the step, write its row of metrics, and a checkpoint if the last is old enough."""
        self.step += 1
        self._metrics.write(self.step, time=round(time.time()), **values)
        self.progress.update(self._task, completed=self.step, told=told)
        if self.finished or time.monotonic() - self._last_save > self._every:
            state = {"step": asdict(self._state), "memory": self.memory}
            save_checkpoint(
                self.folder / "checkpoints", self.step, self.modules, self._tokenizer, self._optimizers, state
            )
            self._last_save = time.monotonic()

    def close(self, **record: Any) -> None:
        """Write training.json, which tells what the loop was and cost."""
        self._metrics.close()
        own = {"params": self._trunk.shape.n_params(), "steps": self.step, "seed": self.seed}
        atomic_write(self.folder / "training.json", to_json(own | self.memory | record))
