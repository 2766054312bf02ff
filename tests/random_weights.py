"""Models whose every parameter is random, for tests that must see each of them at work.

A freshly initialised model is no such thing: its residual projections are zero, so each block is the identity, and a
broken attention, cache or mask would not show.
"""

from __future__ import annotations

import torch

from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer


def random_model(shape: ModelShape, seed: int = 0, deviation: float = 0.2) -> Transformer:
    """The initial draw of `seed` plus normal noise on every parameter."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(shape, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=deviation)
    return model
