"""Linear layers: (..., in) in, (..., out) out, as `nn.Linear`, but faster where a CPU trains in fp32.

torch multiplies dense fp32 matrices on a CPU with MKL. oneDNN, which comes with torch as well, is 15 to 25 % faster at
these products on the AMD processor at hand where there are a few hundred rows or more. torch.compile calls it through
the operator used here; it has no public name and no derivative, hence the guards and the gradient written out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MIN_ROWS = 256
"""With fewer, what oneDNN spends on reordering the weight is not won back."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear(x, weight, bias)`, without a derivative, by oneDNN where it is faster: many fp32 rows on a CPU."""
    if onednn_is_faster(x, weight):
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y
    return F.linear(x, weight, bias)


def onednn_is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether `x` (..., in) times `weight` (out, in) is of the kind at which oneDNN is faster, and oneDNN is there."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.shape[-1] == weight.shape[-1] > 0
        and x.numel() >= MIN_ROWS * x.shape[-1]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


MIN_CAST_WEIGHTS = 1 << 18
"""A smaller matrix's copy, half a megabyte at most, is nothing beside the time that forming it again takes."""


class _Linear(torch.autograd.Function):
    """y = x W^T + b: dx = g W, dW = g^T x, db = sum(g)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = g.flatten(0, -2)
        return (
            product(g, weight.t().contiguous()) if needs_x else None,
            rows.t() @ x.flatten(0, -2) if needs_weight else None,  # here MKL is as fast
            rows.sum(0) if needs_bias else None,
        )


class _CastLinear(torch.autograd.Function):
    """The same with products of a smaller dtype, of which no copy of the weight is kept: the backward makes it again.

    What torch.autocast keeps, a copy of every matrix until the backward has passed it, is half of the model once more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.dtype, x = x.dtype, x.to(dtype)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return F.linear(x, weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        rows = g.flatten(0, -2)
        return (
            (g @ weight.to(g.dtype)).to(ctx.dtype) if needs_x else None,
            (rows.t() @ x.flatten(0, -2)).to(weight.dtype) if needs_weight else None,
            rows.sum(0).to(weight.dtype) if needs_bias else None,
            None,
        )


class Linear(nn.Linear):
    """`nn.Linear`; gradients of second order and `torch.func` transforms only where neither oneDNN nor, for a large
    matrix under autocast on a CPU, `_CastLinear` serves."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.device.type == "cpu" and not torch.compiler.is_compiling():
            y: Tensor
            if torch.is_autocast_enabled("cpu") and self.weight.numel() >= MIN_CAST_WEIGHTS:
                dtype = torch.get_autocast_dtype("cpu")
                y = _CastLinear.apply(x, self.weight, self.bias, dtype)  # type: ignore[no-untyped-call]
                return y
            if onednn_is_faster(x, self.weight):
                y = _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
                return y
        return F.linear(x, self.weight, self.bias)
