"""SwiGLU's gate: (..., 2F) in, silu(gate) * up out, (..., F), with the gradient written out.

As operations of its own the gate's activation is kept for the backward, which is a tenth of a layer's memory; it is
cheaper to form it again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def swiglu(gate_and_up: Tensor) -> Tensor:
    """silu(gate) * up, the gate's F channels first (Shazeer 2020, eq. 6, without the products)."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        y: Tensor = _SwiGLU.apply(gate_and_up)  # type: ignore[no-untyped-call]
        return y
    gate, up = gate_and_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    """d_up = g silu(gate), d_gate = g up silu'(gate)."""

    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        gate, up = ctx.saved_tensors[0].chunk(2, dim=-1)
        return torch.cat([torch.ops.aten.silu_backward(g * up, gate), g * F.silu(gate)], dim=-1)
