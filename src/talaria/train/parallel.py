"""Data parallelism over the ranks that torchrun starts: sums over ranks, and one rank that leads the others.

Rank 0 holds the run folder and decides which stages run; the others `follow` it into those that train. Without a
process group every function is the identity, so one rank and many run the same code.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from talaria.errors import UserError

N = TypeVar("N", int, float)


def start() -> None:
    """Join the process group that torchrun describes in the environment, if there is one."""
    if "RANK" not in os.environ or dist.is_initialized():
        return
    # The others wait for rank 0 through stages that one process runs, such as a corpus, however long they take.
    patience = timedelta(days=7)
    if not torch.cuda.is_available():
        dist.init_process_group("gloo", timeout=patience)
        return
    local, n_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= n_gpus:
        raise UserError(f"rank {local} of this machine has no GPU of its own: it has {n_gpus}; start as many ranks")
    torch.cuda.set_device(local)
    dist.init_process_group("nccl", timeout=patience, device_id=torch.device("cuda", local))


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def sum_over_ranks(value: N) -> N:
    """Sum of a number over all ranks."""
    if world_size() == 1:
        return value
    dtype = torch.int64 if isinstance(value, int) else torch.float64
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(value, dtype=dtype, device=device)
    dist.all_reduce(tensor)
    return type(value)(tensor.item())


def sum_gradients(model: nn.Module) -> None:
    """Sum gradients over ranks, in one flat message."""
    if world_size() == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    offset = 0
    for parameter in model.parameters():
        parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()


def led(stage: str, work: Callable[[Path], None]) -> Callable[[Path], None]:
    """On rank 0, `work(folder)` done by all ranks at once: those that `follow` are told the stage and the folder."""

    def lead(folder: Path) -> None:
        _from_first((stage, str(folder)))
        work(folder)

    return work if world_size() == 1 else lead


def follow(work_of: Callable[[str], Callable[[Path], None]]) -> None:
    """On the other ranks, do `work_of(stage)(folder)` as often as rank 0 leads it, until it calls `finish`."""
    while (told := _from_first(None)) is not None:
        stage, folder = told
        work_of(stage)(Path(folder))
    dist.destroy_process_group()


def finish() -> None:
    """On rank 0, let the other ranks go. Not after an error: torchrun stops them when this process ends with one."""
    if world_size() > 1:
        _from_first(None)
        dist.destroy_process_group()


def _from_first(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
