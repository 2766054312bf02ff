"""Weights changed so that activations round well to 8 bits, and the model still computes the same.

A few columns of a matrix's input are far larger than the others, and a row's 255 steps are spread over them. With
x w^T = (x / s)(w s)^T such columns shrink and the weight's grow instead; 1 / s costs nothing, for it goes into what
made x: the norm before, or the rows of `up` before `down` (SmoothQuant, Xiao et al. 2023, section 4). The input of
attention's `out` is left as it is, and that of a `down` behind GELU, which no factor passes.

Legend: K columns, N rows of a weight, D model width, F feed-forward width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from talaria.model.probe import OUTPUT, Columns
from talaria.model.transformer import Block, Transformer

_SMALLEST = 1e-5


@torch.no_grad()
def smooth_blocks(model: Transformer, inputs: dict[str, Columns]) -> None:
    """Share the size of columns between activations and weights, in place. `inputs`: `probe.seen_inputs`."""
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        feed_forward = block.feed_forward
        for name, matrix, norm in (
            ("attention.qkv", block.attention.qkv, block.attention_norm),
            ("feed_forward.up", feed_forward.up, block.feed_forward_norm),
        ):
            factors_D = _factors(inputs[f"{index}.{name}"], matrix.weight)
            matrix.weight.mul_(factors_D)
            _divide(norm, factors_D)
        if feed_forward.gated:
            factors_F = _factors(inputs[f"{index}.feed_forward.down"], feed_forward.down.weight)
            feed_forward.down.weight.mul_(factors_F)
            for parameter in feed_forward.up.parameters():  # the rows that no SiLU follows are the last
                parameter[len(factors_F) :].div_(factors_F if parameter.dim() == 1 else factors_F[:, None])


@torch.no_grad()
def smooth_output(model: Transformer, inputs: dict[str, Columns]) -> Tensor:
    """The same for the last norm, in place; returns the factors (D) that the output table has yet to be multiplied by,
    which may be the input's too."""
    factors_D = _factors(inputs[OUTPUT], model.head_weight())
    _divide(model.final_norm, factors_D)
    return factors_D


def _factors(x: Columns, weight_NK: Tensor) -> Tensor:
    """s (K) of eq. 4 with a = 1/2: the largest entry of a column becomes the same in activations and weight."""
    large_w_K = weight_NK.float().abs().amax(dim=0)
    factors_K: Tensor = (x.largest.clamp_min(_SMALLEST) / large_w_K.clamp_min(_SMALLEST)).sqrt()
    return factors_K.to(weight_NK.dtype)


def _divide(norm: nn.Module, factors_D: Tensor) -> None:
    for parameter in norm.parameters():
        parameter.div_(factors_D)
