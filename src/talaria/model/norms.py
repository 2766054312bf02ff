"""RMSNorm and LayerNorm over the model width: (..., D) in, (..., D) out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talaria.model.shape import ModelShape


class _RMSNormOnCPU(torch.autograd.Function):
    """y = w n with n = x / rms(x), its gradient written out.

    torch fuses RMSNorm on GPUs only; on a CPU its backward runs through a dozen temporaries, which at a width of a few
    hundred costs as much as the layer's matrices. With r = 1 / rms(x): dx = r (g w - n mean(g w n)), dw = sum(g n).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = _reciprocal_rms(x, eps)
        n = x * r
        ctx.save_for_backward(n, weight, r)
        y: Tensor = n * weight
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        n, weight, r = ctx.saved_tensors
        gn = g * n
        minus_mean = (gn @ weight).div_(-n.shape[-1]).unsqueeze(-1)
        return torch.addcmul(g * weight, n, minus_mean).mul_(r), gn.flatten(0, -2).sum(0), None


def _reciprocal_rms(x: Tensor, eps: float) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) times a learned weight (Zhang and Sennrich 2019, eq. 4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and self.weight.dtype in (torch.float32, torch.float64):
            x = x.to(self.weight.dtype)  # the products of a bf16 training run are bf16
            if not torch.is_grad_enabled():  # the same numbers, without a Function's cost at each of a token's layers
                return x * _reciprocal_rms(x, self.eps) * self.weight
            y: Tensor = _RMSNormOnCPU.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
            return y
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def build_norm(shape: ModelShape) -> nn.Module:
    """The norm of a shape's residual stream: RMSNorm, or LayerNorm (Ba et al. 2016), with a bias if the shape has."""
    if shape.norm == "rmsnorm":
        return RMSNorm(shape.d_model, shape.norm_eps)
    return nn.LayerNorm(shape.d_model, eps=shape.norm_eps, bias=shape.bias)
