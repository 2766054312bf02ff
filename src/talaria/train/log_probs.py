"""Log-probabilities of chosen tokens, and how open the choice was: logits in, two numbers a token out.

As operations of their own, log-softmax, entropy and the gradient each take exponentials of all logits, which at a
vocabulary of some thousand costs as much as the product that made them. Here they are taken once.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def chosen_log_probs(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """log softmax(logits)[target] (N,) and the entropy (N,) of the choice, in nats, in the logits' dtype, fp32 at
    least. The entropy has no gradient."""
    log_probs_N, entropy_N = _ChosenLogProbs.apply(logits_NV, targets_N)  # type: ignore[no-untyped-call]
    return log_probs_N, entropy_N


class _ChosenLogProbs(torch.autograd.Function):
    """With p = softmax(l): log p_t = l_t - t, H = t - sum p l / sum p, d l = g (1_t - p / sum p), all with the
    log total t = max l - log max p + log sum p."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        probs_NV = torch.softmax(logits_NV, dim=-1)
        # From the likeliest token, whose probability never rounds to 0: no second pass of exponentials.
        # softmax adds up 50,000 of them lane by lane, which without AVX-512 is off by 1e-5; the sum of what it gave
        # says by how much.
        sum_N = probs_NV.sum(dim=-1)
        log_total_N = logits_NV.amax(dim=-1) - probs_NV.amax(dim=-1).log() + sum_N.log()
        log_probs_N = logits_NV.gather(1, targets_N[:, None]).squeeze(1) - log_total_N
        entropy_N = log_total_N - torch.linalg.vecdot(probs_NV, logits_NV) / sum_N
        ctx.save_for_backward(probs_NV, sum_N, targets_N)
        ctx.mark_non_differentiable(entropy_N)
        return log_probs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_N: Tensor, _entropy: Tensor) -> tuple[Tensor, None]:
        probs_NV, sum_N, targets_N = ctx.saved_tensors
        gradient_NV = probs_NV * (-g_N / sum_N)[:, None]
        return gradient_NV.scatter_add_(1, targets_N[:, None], g_N[:, None]), None
