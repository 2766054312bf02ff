"""What enters a model's matrices, seen on a pass over random tokens.

No text is needed, the same model gives the same weights anywhere, and what matters to rounding, a few columns that
carry large activations, they do for any input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from talaria.model.linear import Linear
from talaria.model.transformer import Transformer

OUTPUT = "output"
"""Name under which the output table's input is found."""
_ROWS, _POSITIONS = 8, 256


@dataclass(frozen=True)
class Columns:
    """Of each input column of a matrix its largest magnitude and its mean square, fp32 (K)."""

    largest: Tensor
    power: Tensor


@torch.no_grad()
def seen_inputs(model: Transformer) -> dict[str, Columns]:
    """The inputs of every matrix in the blocks, by its name there, and of the output table."""
    generator = torch.Generator().manual_seed(0)
    size = (_ROWS, min(model.shape.context, _POSITIONS))
    tokens_BT = torch.randint(model.shape.vocab_size, size, generator=generator)
    seen: dict[str, Columns] = {}
    hooks = []
    for name, module in model.blocks.named_modules():
        if isinstance(module, Linear):

            def hook(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                seen[name] = _columns(inputs[0])

            hooks.append(module.register_forward_pre_hook(hook))
    try:
        seen[OUTPUT] = _columns(model.hidden(tokens_BT.to(next(model.parameters()).device)))
    finally:
        for handle in hooks:
            handle.remove()
    return seen


def _columns(x: Tensor) -> Columns:
    x_RK = x.float().flatten(0, -2)
    return Columns(x_RK.abs().amax(dim=0), x_RK.square().mean(dim=0))
