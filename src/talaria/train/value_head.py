"""The head of a value network, fitted before PPO's first update: states and their returns in, weights set.

Shapes: N states, D width, X what the network reads of a state: D, or D + 5 with the likelihood of the answer so far.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from talaria.model.scalar import ScalarModel


def fit_value(value: ScalarModel, seen: Iterable[tuple[Tensor, Tensor]], ridge: float = 1e-2) -> None:
    """Set the head to the least squares of returns on states, with a penalty of `ridge` in their own deviations. A
    head that knows nothing would pass every prompt's own difficulty off as the merit of its answer."""
    moments = torch.zeros((), dtype=torch.float64, device=value.bias.device)
    for read_NX, returns_N in seen:
        table = torch.cat([read_NX, returns_N[:, None].to(read_NX), torch.ones_like(read_NX[:, :1])], dim=1).double()
        moments = moments + table.T @ table
    moments = moments / moments[-1, -1]
    mean = moments[-1, :-1]
    covariance = moments[:-1, :-1] - torch.outer(mean, mean)
    penalty = ridge * covariance.diagonal()[:-1].clamp_min(1e-6)
    weight_X = torch.linalg.solve(covariance[:-1, :-1] + penalty.diag(), covariance[:-1, -1])
    width = len(value.weight_D)
    with torch.no_grad():
        value.weight_D.copy_(weight_X[:width])
        value.bias.copy_(mean[-1] - mean[:-1] @ weight_X)
        if value.likelihood_F is not None:
            value.likelihood_F.copy_(weight_X[width:])
