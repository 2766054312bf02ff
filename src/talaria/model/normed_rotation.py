"""Queries and keys for training on a CPU: normalised and turned in one step, with the gradient written out.

As operations of their own, the norm of queries, that of keys, their joining and the rotation take half as long again.

Shapes: B batch, T positions, N query and key heads together, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def one_step_is_faster(weight: Tensor) -> bool:
    """Whether `normed_and_turned` serves: training on a CPU with weights of full precision."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def normed_and_turned(x_BTNE: Tensor, weight_NE: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate(rms_norm(x) * weight, cos, sin)`, computed in the weight's dtype, returned in that of `x`.

    RMSNorm: Zhang and Sennrich 2019, eq. 4; rotation: `talaria.model.attention.rotate`.
    """
    y: Tensor = _NormRotate.apply(x_BTNE, weight_NE, eps, cos, sin)  # type: ignore[no-untyped-call]
    return y


class _NormRotate(torch.autograd.Function):
    """y = R(w n), n = x r, r = 1 / rms(x), R the rotation. With h = R^T g: dx = r (h w - n mean(h w n)), dw = sum(h n).

    R adds to each channel times its cosine the other half's times its sine; R^T multiplies by the sine first.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        n = x.to(weight.dtype, copy=True)
        r = torch.linalg.vector_norm(n, dim=-1, keepdim=True).square_().div_(2 * half).add_(eps).rsqrt_()
        n.mul_(r)
        ctx.save_for_backward(n, weight, r, cos, sin)
        ctx.dtype = x.dtype
        y = n * weight
        turned = y.roll(half, dims=-1).mul_(sin)
        return torch.addcmul(turned, y, cos).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        n, weight, r, cos, sin = ctx.saved_tensors
        g = g.to(weight.dtype)
        h = (g * sin).roll(n.shape[-1] // 2, dims=-1).addcmul_(g, cos)
        grad_weight = (h * n).sum((0, 1))
        h.mul_(weight)
        minus_mean = torch.linalg.vecdot(h, n).div_(-n.shape[-1]).unsqueeze(-1)
        return h.addcmul_(n, minus_mean).mul_(r).to(ctx.dtype), grad_weight, None, None, None
