"""SwiGLU's gate: (..., 2F) in, silu(gate) * up out, (..., F), with the gradient written out.

As operations of its own the gate's activation is kept for the backward, a tenth of a layer's memory. Where that is much
it is formed again instead, which takes the gate's backward a third longer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_ELEMENTS = 1 << 21
"""Of `gate_and_up`, from which on its activation is formed again: 135M parameters, 1,024 positions, are above it."""


def swiglu(gate_and_up: Tensor) -> Tensor:
    """silu(gate) * up, the gate's F channels first (Shazeer 2020, eq. 6, without the products)."""
    if gate_and_up.numel() >= MIN_ELEMENTS and torch.is_grad_enabled() and not torch.compiler.is_compiling():
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
        (gate_and_up,) = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        gradient = torch.empty_like(gate_and_up)
        d_gate, d_up = gradient.chunk(2, dim=-1)
        torch.mul(g, F.silu(gate), out=d_up)
        torch.ops.aten.silu_backward.grad_input(g * up, gate, grad_input=d_gate)
        return gradient
