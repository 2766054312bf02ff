"""Muon: the momentum of a hidden matrix, made orthogonal (Jordan et al. 2024, "Muon: An optimizer for hidden layers").

Enters: parameters with gradients, and the rows at which a fused parameter falls into its matrices. Leaves: parameters
updated in place. Query, key, value, gate and up are matrices of their own: made orthogonal as one, the part with the
largest gradient would set the direction of the others.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_MAX_STACKED = 1 << 25
"""Elements made orthogonal at a time, so that a large model's copies stay small beside its weights."""


def orthogonalised(matrices_NRC: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """U S' V^T with S' near 1 for each of N matrices U S V^T, in `dtype`: the quintic Newton-Schulz iteration.

    Its coefficients grow small singular values fastest, and leave those above a hundredth or so of the matrix's norm
    between 0.7 and 1.2. R is at most C, so that the products are of the smaller square.
    """
    a, b, c = _COEFFICIENTS
    x = matrices_NRC.to(dtype)
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram_NRR = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonal updates, decoupled weight decay; the rate is AdamW's.

    An update is scaled by 0.2 sqrt(max(rows, columns)), which gives it the RMS of AdamW's (Liu et al. 2025, section
    2.2). `rows_of` names, for a parameter that holds several matrices, the rows of each. Matrices of equal shape,
    lying or standing, share one batched product. The iteration runs in `dtype`, for which bfloat16 is exact enough.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        rows_of: Mapping[nn.Parameter, tuple[int, ...]],
        momentum: float = 0.95,
        newton_schulz_steps: int = 5,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._rows_of, self._steps, self._dtype = rows_of, newton_schulz_steps, dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            lying: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                average = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                direction = parameter.grad.lerp(average, group["momentum"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                rows = self._rows_of.get(parameter, (len(parameter),))
                for weight, part in zip(parameter.split(rows), direction.split(rows), strict=True):
                    turned = (weight.T, part.T) if part.shape[0] > part.shape[1] else (weight, part)
                    lying[turned[0].shape].append(turned)
            for shape, pairs in lying.items():
                self._update(shape, pairs, group["lr"])

    def _update(self, shape: torch.Size, pairs: list[tuple[Tensor, Tensor]], rate: float) -> None:
        at_once = max(1, _MAX_STACKED // shape.numel())
        for start in range(0, len(pairs), at_once):
            some = pairs[start : start + at_once]
            updates = orthogonalised(torch.stack([part for _, part in some]), self._steps, self._dtype)
            for (weight, _), update in zip(some, updates, strict=True):
                weight.add_(update, alpha=-rate * 0.2 * math.sqrt(max(shape)))
