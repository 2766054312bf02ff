"""Micro-batches over the cores of one CPU: losses in, gradients summed into `.grad` out, in a fixed order; or, without
gradients, what is computed of each.

torch spreads each operation over the cores, which wait for one another after every one of them. In a small model the
operations are so short that the waiting shows (and if another program holds a core, all wait for it). Here every core
takes a micro-batch of its own through forward and backward, and they meet once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from talaria.model.device import default_device
from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer

M = TypeVar("M")
MAX_PARAMETERS = 32_000_000
"""Above this, operations are long enough to be shared, and a gradient for each core would cost too much memory."""
MAX_ACTIVATION_BYTES = 128 << 20
"""What a core's micro-batch may keep for its backward. Chosen while the allocator still handed freed memory back
(`allocator.py`), when from two to four times as much was slower; not measured again since."""
PIECE_TOKENS = 1024
"""On a CPU as many at a time take no longer than all at once, and rows that differ in length need less padding."""


class Cut(NamedTuple):
    """How the rows of a batch are computed: `rows` at a time on each of `cores`."""

    rows: int
    cores: int = 1


def cut_for(model: Transformer, size: Sequence[int], micro_tokens: int) -> Cut:
    """Of a batch of `size` (B, T): equal numbers of rows for the cores, at most `micro_tokens` tokens each."""
    rows, longest = size
    if default_device().type == "cpu":
        micro_tokens = min(micro_tokens, PIECE_TOKENS)
    cores = cores_for(model, rows)
    most = max(1, micro_tokens // longest)
    return Cut(max(1, min(most, -(-rows // cores))), cores)


def cores_for(model: Transformer, rows: int) -> int:
    """How many micro-batches to run side by side: the threads torch may use, or 1 to let it share each operation."""
    cores = torch.get_num_threads()
    return cores if _is_small_on_cpu(model) and rows >= cores else 1


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Let torch share each operation among `n` threads, and among as many as before at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows_each(model: Transformer, rows: int, context: int, micro_rows: int, cores: int) -> int:
    """Rows of a micro-batch: the cores have equal work and at most `micro_rows` rows are in flight over all of them.

    On a CPU, a small model's micro-batch also keeps its activations within `MAX_ACTIVATION_BYTES`, or is one row.
    """
    rounds = -(-rows // micro_rows)
    if _is_small_on_cpu(model):
        rounds = max(rounds, -(-rows // (cores * _most_rows(model.shape, context))))
    return -(-rows // (cores * rounds))


def rows_at_once(shape: ModelShape, rows: int, context: int) -> int:
    """Of a batch of `rows` rows that go at once, how many are in flight on this machine after all."""
    if default_device().type != "cpu" or shape.n_params() > MAX_PARAMETERS:
        return rows
    return min(rows, torch.get_num_threads() * _most_rows(shape, context))


def _most_rows(shape: ModelShape, context: int) -> int:
    return max(1, MAX_ACTIVATION_BYTES // shape.activation_bytes(context))


def _is_small_on_cpu(model: Transformer) -> bool:
    is_compiled = "hidden" in vars(model)  # compiled code has its number of threads and of rows built in
    on_cpu = model.embed.weight.device.type == "cpu"
    return on_cpu and not is_compiled and model.shape.n_params() <= MAX_PARAMETERS


def backward_each(
    loss_of: Callable[[M], Tensor], micro_batches: list[M], model: nn.Module, divisor: float, cores: int
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

    def gradients_of(micro: M) -> tuple[float, tuple[Tensor, ...]]:
        loss = loss_of(micro)
        return float(loss.detach()), torch.autograd.grad(loss / divisor, parameters)

    with threads(1):
        for start in range(0, len(micro_batches), cores):
            for loss_sum, gradients in _pool(cores).map(gradients_of, micro_batches[start : start + cores]):
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
                yield loss_sum


def forward_each(compute: Callable[[M], Tensor], pieces: list[M], cores: int) -> list[Tensor]:
    """`compute` of each piece without gradients, in their order, products in the caller's dtype."""
    if cores == 1 or len(pieces) == 1:
        with torch.no_grad():
            return [compute(piece) for piece in pieces]
    dtype, is_enabled = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")

    def alone(piece: M) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype, is_enabled):  # both are a thread's own
            return compute(piece)

    with threads(1):
        computing = [_pool(cores).submit(alone, piece) for piece in pieces]
        wait(computing)  # so that after an error none still runs in what was the caller's context
        return [piece.result() for piece in computing]


@cache
def _pool(cores: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores, "micro-batch", initializer=torch.set_num_threads, initargs=(1,))
