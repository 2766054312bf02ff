"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from talaria.model.transformer import Transformer
from talaria.train.muon import Muon
from talaria.train.settings import OptimizerSettings


def make_optimizers(
    model: nn.Module, settings: OptimizerSettings, learning_rate: float, dtype: torch.dtype = torch.float32
) -> dict[str, torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019) for all parameters, or for all but the hidden matrices, which take Muon
    (Jordan et al. 2024), whose products are of `dtype`. Matrices decay, vectors do not. Each group keeps its peak rate
    as `peak_rate`."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    by_muon = {name for name, p in named if settings.name == "muon" and p.ndim == 2 and _is_hidden(name)}
    adamw = torch.optim.AdamW(
        [
            {"params": params, "weight_decay": decay, "peak_rate": learning_rate}
            for decay, params in (
                (settings.weight_decay, [p for name, p in named if name not in by_muon and p.ndim >= 2]),
                (0.0, [p for name, p in named if p.ndim < 2]),
            )
            if params
        ],
        lr=learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )
    if not by_muon:
        return {"adamw": adamw}
    assert isinstance(model, Transformer), "Muon needs to know the matrices of a trunk"
    muon_rate = settings.muon_learning_rate or learning_rate
    muon = Muon(
        [{"params": [p for name, p in named if name in by_muon], "peak_rate": muon_rate}],
        lr=muon_rate,
        weight_decay=settings.weight_decay,
        rows_of=model.fused_rows(),
        newton_schulz_steps=settings.newton_schulz_steps,
        dtype=dtype,
    )
    return {"adamw": adamw, "muon": muon}


def rate_share(step: int, steps: int, settings: OptimizerSettings) -> float:
    """The rate of `step` (0-based) of `steps` as a share of the peak: `final_rate` at the last one."""
    warmup = settings.warmup_share * steps
    if step + 1 <= warmup:
        return (step + 1) / warmup
    decay = steps - warmup if settings.schedule == "cosine" else settings.decay_share * steps
    # 1 where the decay begins, 0 at the last step, which so runs at `final_rate` itself.
    left = min(1.0, (steps - 1 - step) / max(1.0, decay - 1))
    if settings.schedule == "cosine":
        left = 0.5 * (1 - math.cos(math.pi * left))
    return settings.final_rate + (1 - settings.final_rate) * left


def set_rate(optimizers: dict[str, torch.optim.Optimizer], share: float) -> None:
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["peak_rate"] * share


def optimizer_tensors(model: nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> Iterator[tuple[str, Tensor]]:
    """Every state tensor by `optimizer/parameter/key`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for kind, optimizer in optimizers.items():
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                yield f"{kind}/{names[parameter]}/{key}", value


def load_optimizer_tensors(
    model: nn.Module, optimizers: dict[str, torch.optim.Optimizer], tensors: dict[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    for path, tensor in tensors.items():
        kind, name, key = path.split("/")
        parameter = parameters[name]
        optimizers[kind].state[parameter][key] = tensor.to(parameter.device)


def _is_hidden(name: str) -> bool:
    return not any(part in name for part in ("embed", "head", "position"))
