"""Micro-batches over the cores of one CPU: losses in, gradients summed into `.grad` out, in a fixed order.

torch spreads each operation over the cores, which wait for one another after every one of them. In a small model the
operations are so short that the waiting shows (and if another program holds a core, all wait for it). Here every core
takes a micro-batch of its own through forward and backward, and they meet once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor, nn

from talaria.model.transformer import Transformer
from talaria.tokens.batches import Batch

MAX_PARAMETERS = 32_000_000
"""Above this, operations are long enough to be shared, and a gradient for each core would cost too much memory."""


def cores_for(model: Transformer, rows: int) -> int:
    """How many micro-batches to run side by side: the threads torch may use, or 1 to let it share each operation."""
    cores = torch.get_num_threads()
    is_compiled = "hidden" in vars(model)  # compiled code has its number of threads built in
    small = model.shape.n_params() <= MAX_PARAMETERS and model.embed.weight.device.type == "cpu"
    return cores if small and not is_compiled and rows >= cores else 1


def backward_each(
    loss_of: Callable[[Batch], Tensor], micro_batches: list[Batch], model: nn.Module, divisor: float, cores: int
) -> Iterator[float]:
    """Add the gradient of `loss_of(micro) / divisor` to `.grad` for each micro-batch, yielding its loss each time.

    With several cores the result is the same as with one but for float rounding, and the same on every run.
    """
    if cores == 1:
        for micro in micro_batches:
            loss = loss_of(micro)
            (loss / divisor).backward()  # type: ignore[no-untyped-call]
            yield float(loss.detach())
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients_of(micro: Batch) -> tuple[float, tuple[Tensor, ...]]:
        loss = loss_of(micro)
        return float(loss.detach()), torch.autograd.grad(loss / divisor, parameters)

    torch.set_num_threads(1)
    try:
        for start in range(0, len(micro_batches), cores):
            for loss_sum, gradients in _pool(cores).map(gradients_of, micro_batches[start : start + cores]):
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
                yield loss_sum
    finally:
        torch.set_num_threads(cores)


@cache
def _pool(cores: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores, "micro-batch", initializer=torch.set_num_threads, initargs=(1,))
