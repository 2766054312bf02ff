"""What a training loop shows while it runs: a progress bar, tokens a second, model FLOPs utilisation."""

from __future__ import annotations

import time
from functools import cache
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from talaria.train.step import StepResult


@cache
def peak_flops(dtype: torch.dtype = torch.float32) -> float:
    """Multiply-add FLOP/s of this machine, measured with one large matrix product (best of five)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n = 1024 if device == "cpu" else 8192
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        float((a @ b)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


class Meter:
    """Counts steps; `row` gives the rates of the last one."""

    def __init__(
        self,
        title: str,
        steps: int,
        done: int,
        flops_per_token: int,
        dtype: torch.dtype = torch.float32,
        ranks: int = 1,
        show: bool = True,
    ) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (show and console.is_terminal),
        )
        self._task = self._progress.add_task(title, total=steps, completed=done, rate="")
        self._flops_per_token, self._dtype, self._ranks = flops_per_token, dtype, ranks
        self._clock = time.perf_counter()
        self._rate = 0.0

    def __enter__(self) -> Meter:
        self._progress.start()
        self._clock = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def count(self, step: int, result: StepResult) -> None:
        now = time.perf_counter()
        self._rate = result.n_positions / max(now - self._clock, 1e-9)
        self._clock = now
        self._progress.update(self._task, completed=step, rate=f"loss {result.loss:.3f}  {self._rate:,.0f} tok/s")

    def pause(self) -> None:
        """Leave the time since the last count (a validation, a save) out of the next rate."""
        self._clock = time.perf_counter()

    def row(self, result: StepResult) -> dict[str, float | bool | None]:
        """Values for one row of metrics.jsonl. Rates count every computed position, also those without a loss; MFU is
        the share of what all ranks reach in large products of the same dtype."""
        return {
            "train_loss": result.loss,
            "grad_norm": result.grad_norm,
            "tokens_per_second": self._rate,
            "flops_per_second": self._rate * self._flops_per_token,
            "mfu": self._rate * self._flops_per_token / (self._ranks * peak_flops(self._dtype)),
            "noise_scale": result.noise_scale,
            "skipped": result.skipped or None,
            "spike": result.spike or None,
        }
