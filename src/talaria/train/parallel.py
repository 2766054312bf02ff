"""Data parallelism over torch.distributed ranks: start with `torchrun --nproc-per-node N -m talaria ...`.

Without a process group every function is the identity, so one rank and many run the same code.
"""

from __future__ import annotations

import os
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

N = TypeVar("N", int, float)


def start() -> None:
    """Join the process group that torchrun describes in the environment, if there is one."""
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


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
