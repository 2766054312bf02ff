"""Losses as sums over counted tokens, never means of means. The caller divides by the global count.

Shapes: N counted tokens, D width, V vocabulary, B rows, T positions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from talaria.model.linear import product

_CHUNK_LOGITS = 1 << 20
"""Logits held at a time: 4 MiB in fp32, which a CPU core's share of the cache holds between one pass and the next."""
_CHUNK_LOGITS_ON_GPU = 1 << 26
"""256 MiB there: a step of 135M parameters and 32 x 1,024 tokens took an H200 0.196 s with 1 << 20, 0.173 with this,
and 0.169 with 1 << 28, for 3 GiB more."""
_ROWS_OF_A_PRODUCT = 64
"""oneDNN keeps code and memory for every shape it has multiplied, megabytes each: conversations, whose batches rarely
count as many tokens twice, are filled up with rows of zeros to a multiple of this."""
_MIN_CHUNK = 256
"""But at least so many tokens: every chunk reads the whole output table and adds to all of its gradient."""


def chunk_logits(device: str) -> int:
    """Logits held at a time on a device of that type, unless `_MIN_CHUNK` tokens have more."""
    return _CHUNK_LOGITS if device == "cpu" else _CHUNK_LOGITS_ON_GPU


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Sum of cross-entropies of `hidden @ weight.T` against `targets`, in nats, fp32 (fp64 of fp64).

    Equal to `F.cross_entropy(hidden @ weight.T, targets, reduction="sum")`, but the logits exist only a chunk at a
    time: gradients are formed in the forward pass, so neither logits nor probabilities of all tokens are ever held.
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        n, vocab_size = hidden_ND.shape[0], weight_VD.shape[0]
        # Inside a Function autocast does not choose for us: out= and in-place products keep their operands' dtype.
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        fill = -n % _ROWS_OF_A_PRODUCT if device == "cpu" else 0
        hidden_cast_ND, targets_filled_N = F.pad(hidden_ND.to(dtype), (0, 0, 0, fill)), F.pad(targets_N, (0, fill))
        weight_cast_VD = weight_VD.to(dtype)
        with_grad = any(ctx.needs_input_grad)
        grad_hidden_ND = hidden_ND.new_empty(n + fill, hidden_ND.shape[1]) if with_grad else None
        grad_weight_VD = torch.zeros_like(weight_VD) if with_grad else None
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden_ND.device)
        chunk = max(_MIN_CHUNK, chunk_logits(device) // vocab_size)
        for start in range(0, n + fill, chunk):
            hidden_CD, targets_C = hidden_cast_ND[start : start + chunk], targets_filled_N[start : start + chunk]
            logits_CV = product(hidden_CD, weight_cast_VD).to(exact)
            probs_CV = torch.softmax(logits_CV, dim=-1)
            # log sum exp from the likeliest token, whose probability never rounds to 0: no second pass of exponentials.
            behind_C = logits_CV.amax(dim=-1) - logits_CV.gather(1, targets_C[:, None]).squeeze(1)
            total += (behind_C - probs_CV.amax(dim=-1).log())[: max(0, n - start)].sum()
            if grad_hidden_ND is not None and grad_weight_VD is not None:
                grad_logits_CV = probs_CV
                grad_logits_CV[torch.arange(len(targets_C), device=targets_C.device), targets_C] -= 1.0
                grad_logits_CV = grad_logits_CV.to(dtype)
                grad_hidden_ND[start : start + chunk] = grad_logits_CV @ weight_cast_VD
                if grad_weight_VD.dtype == grad_logits_CV.dtype:
                    grad_weight_VD.addmm_(grad_logits_CV.T, hidden_CD)
                else:
                    grad_weight_VD += grad_logits_CV.T @ hidden_CD
        if grad_hidden_ND is not None and grad_weight_VD is not None:
            ctx.save_for_backward(grad_hidden_ND[:n], grad_weight_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
        # In place, for the table's gradient may be the largest tensor there is; a second backward raises an error.
        return grad_hidden_ND.mul_(grad_outputs[0]), grad_weight_VD.mul_(grad_outputs[0]), None
