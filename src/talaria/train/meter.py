"""What a training loop shows while it runs: a progress bar, FLOPs and tokens a second, model FLOPs utilisation, hours
and cost left beside what was planned."""

from __future__ import annotations

import time
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from talaria.train.settings import PlanSettings
from talaria.train.step import StepResult

_MOST_MEASURES_AGAIN = 9
"""By one meter, of a peak that its run exceeds."""
_peaks: dict[torch.dtype, float] = {}


def peak_flops(dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of this machine in large matrix products, as first measured or by `measure_peak_again`."""
    if dtype not in _peaks:
        _peaks[dtype] = measure_peak(dtype)
    return _peaks[dtype]


def measure_peak_again(dtype: torch.dtype) -> None:
    """For one that was exceeded: other programs were at work when it was measured."""
    _peaks[dtype] = max(_peaks[dtype], measure_peak(dtype))


def measure_peak(dtype: torch.dtype) -> float:
    """Multiply-add FLOP/s of the best of five large matrix products."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n = 1024 if device == "cpu" else 8192
    own = torch.Generator(device).manual_seed(0)  # a measure in the middle of a run leaves its random numbers alone
    a, b = (torch.randn(n, n, device=device, dtype=dtype, generator=own) for _ in range(2))
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
        plan: PlanSettings = PlanSettings(),  # noqa: B008 - frozen
    ) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
            disable=not (show and console.is_terminal),
        )
        self._task = self._progress.add_task(title, total=steps, completed=done, rate="")
        self._flops_per_token, self._dtype, self._ranks = flops_per_token, dtype, ranks
        self._steps, self._plan = steps, plan
        self._clock = time.perf_counter()
        self._rate, self._left = 0.0, 0.0
        self._seconds, self._counted = 0.0, 0
        # A GPU is seldom shared, and has little memory left in the middle of a run.
        self._measures_left = 0 if torch.cuda.is_available() else _MOST_MEASURES_AGAIN

    def __enter__(self) -> Meter:
        self._progress.start()
        peak_flops(self._dtype)  # so that the first step's time has no part of it
        self._clock = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def count(self, step: int, result: StepResult) -> None:
        now = time.perf_counter()
        taken = max(now - self._clock, 1e-9)
        self._rate, self._clock = result.n_positions / taken, now
        self._seconds, self._counted = self._seconds + taken, self._counted + 1
        # By the mean of all steps of this process: a single step's time is the luck of a busy machine.
        self._left = (self._steps - step) * self._seconds / self._counted / 3600
        if self._mfu > 1 and self._measures_left > 0:
            self._measures_left -= 1
            measure_peak_again(self._dtype)
            self.pause()
        self._progress.update(self._task, completed=step, rate=self.line(step, result))

    def line(self, step: int, result: StepResult) -> str:
        """The last step in words."""
        words = [f"loss {result.loss:.3f}", f"{self._rate:,.0f} tok/s", f"{100 * self._mfu:.0f} % MFU"]
        words.append(f"{step * result.n_positions * self._flops_per_token:.2g} FLOPs")
        planned = "" if self._plan.hours is None else f" (planned {_hours(self._planned_left(step))})"
        words.append(f"{_hours(self._left)} left{planned}")
        if self._plan.hourly_cost is not None:
            cost = self._plan.hourly_cost
            planned = "" if self._plan.hours is None else f" (planned {self._planned_left(step) * cost:,.2f})"
            words.append(f"{self._left * cost:,.2f} to pay{planned}")
        return "  ".join(words)

    @property
    def _mfu(self) -> float:
        return self._rate * self._flops_per_token / (self._ranks * peak_flops(self._dtype))

    def _planned_left(self, step: int) -> float:
        """Hours that the plan had left for the rest of the run; it must have some."""
        assert self._plan.hours is not None
        return self._plan.hours * (self._steps - step) / max(1, self._steps)

    def pause(self) -> None:
        """Leave the time since the last count (a validation, a save) out of the next rate."""
        self._clock = time.perf_counter()

    def row(self, step: int, result: StepResult) -> dict[str, float | bool | None]:
        """Values for one row of metrics.jsonl. Rates count every computed position, also those without a loss; MFU is
        the share of what all ranks reach in large products of the same dtype. `flops` are of the run up to `step`;
        hours and cost left are of its training steps, at the mean rate of this process."""
        planned = None if self._plan.hours is None else self._planned_left(step)
        cost = self._plan.hourly_cost
        return {
            "train_loss": result.loss,
            "grad_norm": result.grad_norm,
            "tokens_per_second": self._rate,
            "flops_per_second": self._rate * self._flops_per_token,
            "mfu": self._mfu,
            "flops": step * result.n_positions * self._flops_per_token,
            "hours_left": self._left,
            "planned_hours_left": planned,
            "cost_left": None if cost is None else self._left * cost,
            "planned_cost_left": None if cost is None or planned is None else planned * cost,
            "noise_scale": result.noise_scale,
            "skipped": result.skipped or None,
            "spike": result.spike or None,
        }


def _hours(hours: float) -> str:
    return f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.1f} min"
