"""LoRA (Hu et al. 2022): frozen matrices with a trained difference of low rank, merged into plain weights at the end.

add_lora(model, rank=8, alpha=16.0, generator=torch.Generator().manual_seed(0))   # only A and B are trained now
with without_lora(model): ...                                                     # the model as it was
merge_lora(model)                                                                 # plain matrices again
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talaria.model.linear import Linear
from talaria.model.transformer import Transformer

_PLACES = {"attention": ("qkv", "out"), "feed_forward": ("up", "down")}


class LoraLinear(nn.Module):
    """y = W x + b + alpha/r B A x with W and b frozen; A is drawn, B is 0, so that it begins as W alone."""

    def __init__(self, plain: Linear, rank: int, alpha: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.plain = plain.requires_grad_(False)
        self.scale, self.enabled = alpha / rank, True
        columns = plain.in_features
        drawn = torch.randn(rank, columns, generator=generator, dtype=torch.float32) / math.sqrt(columns)
        self.down = nn.Parameter(drawn.to(plain.weight))
        self.up = nn.Parameter(plain.weight.new_zeros(plain.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.plain(x)
        if not self.enabled:
            return y
        return y + self.scale * F.linear(F.linear(x, self.down), self.up)

    @torch.no_grad()
    def merged(self) -> Linear:
        """The matrix with its difference added."""
        self.plain.weight.add_(self.up @ self.down, alpha=self.scale)
        return self.plain.requires_grad_(True)


def add_lora(model: Transformer, rank: int, alpha: float, generator: torch.Generator | None = None) -> None:
    """Freeze the model and give every matrix of its blocks a trained difference of rank `rank`."""
    assert rank > 0
    model.requires_grad_(False)
    for block in model.blocks:
        for part, names in _PLACES.items():
            module = block.get_submodule(part)
            for name in names:
                setattr(module, name, LoraLinear(getattr(module, name), rank, alpha, generator))


def merge_lora(model: Transformer) -> None:
    """Add the differences to the matrices, for export and for engines that know no LoRA; every parameter is trained
    again. A model without LoRA stays as it is."""
    if not any(isinstance(module, LoraLinear) for module in model.modules()):
        return
    for block in model.blocks:
        for part, names in _PLACES.items():
            module = block.get_submodule(part)
            for name in names:
                if isinstance(lora := getattr(module, name), LoraLinear):
                    setattr(module, name, lora.merged())
    model.requires_grad_(True)


def merged_copy(model: Transformer) -> Transformer:
    """A copy with plain weights, to be saved while the original is trained on; without LoRA the model itself."""
    if not any(isinstance(module, LoraLinear) for module in model.modules()):
        return model
    plain = deepcopy(model)
    merge_lora(plain)
    return plain


def lora_is_on(model: Transformer) -> bool:
    """Whether no difference is left out just now; True of a model without any."""
    return all(module.enabled for module in model.modules() if isinstance(module, LoraLinear))


@contextmanager
def without_lora(model: Transformer) -> Iterator[None]:
    """The model as it was before training: a reference that costs no second copy."""
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True
