"""Attention for bf16 training on a CPU: queries, keys and values in, their mixture out, with the gradient written out.

torch's fused kernel reaches on a CPU a third of what the processor's bf16 products do, and less in its backward. Over a
few hundred positions the scores of all pairs fit in the cache, so plain products win.

Shapes: B rows, H query heads, K key-value heads, T positions, E head width; N = B H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_POSITIONS = 512
"""Above this the scores, which grow with the square, leave the cache, and memory would grow with them."""


def bf16_products_are_faster(queries: Tensor, keys: Tensor) -> bool:
    """Whether `bf16_attention` serves: under autocast on a CPU, as in training, as many keys as queries, and few of
    them. With gradients or without, or a policy would differ from its reference by more than the weights do."""
    return (
        queries.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and queries.shape[2] == keys.shape[2]
        and queries.shape[2] <= MAX_POSITIONS
        and not torch.compiler.is_compiling()
    )


def bf16_attention(queries_BHTE: Tensor, keys_BKTE: Tensor, values_BKTE: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(E)) V over the keys a query may see (Vaswani et al. 2017, eq. 1), bf16 (B, H, T, E).

    Products, scores and probabilities are bf16, the sums inside them fp32. `mask`: bool, broadcastable to (B, 1, T, T),
    true where a query may see a key, one key at least; None is causal.
    """
    if mask is None:
        T = queries_BHTE.shape[2]
        mask = torch.ones(T, T, dtype=torch.bool, device=queries_BHTE.device).tril()
    bias = torch.zeros(mask.shape, dtype=torch.bfloat16, device=mask.device).masked_fill_(~mask, -torch.inf)
    group = queries_BHTE.shape[1] // keys_BKTE.shape[1]
    keys_BHTE, values_BHTE = (x.repeat_interleave(group, dim=1) for x in (keys_BKTE, values_BKTE))
    y: Tensor = _BF16Attention.apply(queries_BHTE, keys_BHTE, values_BHTE, bias)  # type: ignore[no-untyped-call]
    return y


class _BF16Attention(torch.autograd.Function):
    """With P the probabilities: dV = P^T dY, dP = dY V^T, dS = P (dP - sum(dP P)), dQ = dS K, dK = dS^T Q."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        ctx.scale = queries.shape[-1] ** -0.5
        queries_NTE, keys_NTE, values_NTE = _bf16(queries * ctx.scale), _bf16(keys), _bf16(values)
        scores_NTT = torch.bmm(queries_NTE, keys_NTE.mT)
        scores_NTT.view(*queries.shape[:-1], -1).add_(bias)
        probs_NTT = torch.softmax(scores_NTT, dim=-1)
        ctx.save_for_backward(queries_NTE, keys_NTE, values_NTE, probs_NTT)
        return torch.bmm(probs_NTT, values_NTE).view(values.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        queries_NTE, keys_NTE, values_NTE, probs_NTT = ctx.saved_tensors
        g_NTE = _bf16(g)
        grad_probs_NTT = torch.bmm(g_NTE, values_NTE.mT)
        grad_scores_NTT = torch._softmax_backward_data(grad_probs_NTT, probs_NTT, -1, torch.bfloat16)
        return (
            torch.bmm(grad_scores_NTT, keys_NTE).mul_(ctx.scale).view(g.shape),
            torch.bmm(grad_scores_NTT.mT, queries_NTE).view(g.shape),
            torch.bmm(probs_NTT.mT, g_NTE).view(g.shape),
            None,
        )


def _bf16(x: Tensor) -> Tensor:
    """(B, H, T, E) of any dtype and layout as (N, T, E), bf16."""
    return x.to(torch.bfloat16, memory_format=torch.contiguous_format).reshape(-1, *x.shape[-2:])
