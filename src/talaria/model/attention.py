"""Causal self-attention with grouped queries, rotary positions and a key-value cache.

Enters: hidden states and rotary tables. Leaves: hidden states of the same shape. The same module serves training (no
cache, causal), packed documents (a mask) and decoding (a cache).

Shapes: B batch, T positions, S key positions, D model width, H query heads, K key-value heads, E head width.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talaria.model.attention_bf16 import bf16_attention, bf16_products_are_faster
from talaria.model.linear import Linear
from talaria.model.normed_rotation import normed_and_turned, one_step_is_faster
from talaria.model.norms import RMSNorm
from talaria.model.shape import ModelShape


class Cache(Protocol):
    """What decoding keeps between calls. `talaria.infer.kv_cache` holds one; the trunk only calls it."""

    def update(self, layer: int, keys_BKTE: Tensor, values_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values; return all of that layer, (B, K, S, E) each, the new ones last."""
        ...

    def carry(self, name: str, values: Tensor, n: int) -> Tensor:
        """Return the `n` entries along dim 1 that came before `values` (B, T, ...), zeros at a sequence's start, and
        keep the last `n` for the next call. Only shapes with `token_shift` or `ngram_embeddings` call it."""
        ...


def rope_frequencies(shape: ModelShape, device: torch.device | None = None) -> Tensor:
    """Angle per position of each channel pair, fp32 (E/2,): theta^(-2i/E) (Su et al. 2021, eq. 15)."""
    exponents = torch.arange(0, shape.d_head, 2, dtype=torch.int64, device=device).float() / shape.d_head
    frequencies: Tensor = 1.0 / shape.rope_theta**exponents
    scaling = shape.rope_scaling
    if scaling is None:
        return frequencies
    # LLaMA 3.1: long wavelengths are stretched by `factor`, short ones kept, those between blended linearly.
    turns = scaling.original_context * frequencies / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    stretched: Tensor = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    return stretched


def rope_angles(shape: ModelShape, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of each position's angles, fp32 (B, T, 1, E) each, in the half-rotation layout of `rotate`.

    They are computed at each call, once for all layers: cheaper than it looks, and no table has to follow the weights
    from device to device, survive a cast to bf16, or be as long as the longest context.
    """
    angles = positions_BT[..., None, None].float() * rope_frequencies(shape, positions_BT.device)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x_BTHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs by their position's angle.

    Channel i is paired with channel i + E/2, as in Hugging Face's LLaMA (not 2i with 2i + 1, as in the paper and in
    llama.cpp). cos and sin are those of `rope_angles`, the sign of the first half folded into sin.
    """
    half = x_BTHE.shape[-1] // 2
    return x_BTHE * cos + x_BTHE.roll(half, dims=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023). Rows of the fused projection: queries, then keys, then values."""

    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.shape = shape
        self.layer = layer
        self.qkv = Linear(shape.d_model, shape.d_qkv, bias=shape.bias)
        self.out = Linear(shape.d_attention, shape.d_model, bias=shape.bias)
        if shape.qk_norm:
            self.query_norm = RMSNorm(shape.d_head, shape.norm_eps)
            self.key_norm = RMSNorm(shape.d_head, shape.norm_eps)

    def forward(
        self, x_BTD: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        shape = self.shape
        B, T, _ = x_BTD.shape
        H, K = shape.n_heads, shape.n_kv_heads
        qkv = self.qkv(x_BTD).view(B, T, H + 2 * K, shape.d_head)
        qk, values = qkv.split([H + K, K], dim=2)
        if shape.qk_norm and rope is not None and one_step_is_faster(self.query_norm.weight):
            weights = self.query_norm.weight.expand(H, -1), self.key_norm.weight.expand(K, -1)
            qk = normed_and_turned(qk, torch.cat(weights), shape.norm_eps, *rope)
        else:
            if shape.qk_norm:
                qk = torch.cat([self.query_norm(qk[:, :, :H]), self.key_norm(qk[:, :, H:])], dim=2)
            if rope is not None:
                qk = rotate(qk, *rope).to(values.dtype)
        queries, keys = qk.split([H, K], dim=2)
        queries, keys, values = queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        if cache is not None:
            keys, values = cache.update(self.layer, keys, values)
        S = keys.shape[2]
        if mask is None and T not in (1, S):
            # With a cache the queries are the last T of S positions; is_causal would align them with the first.
            mask = torch.ones(T, S, dtype=torch.bool, device=x_BTD.device).tril(S - T)
        if T == 1 and H != K and queries.is_cuda:
            # The heads of a group as a head's queries: beside a mask torch would copy the keys for each of them.
            queries_BKGE = queries.reshape(B, K, H // K, shape.d_head)
            y_BHTE = F.scaled_dot_product_attention(queries_BKGE, keys, values, attn_mask=mask).reshape(queries.shape)
        elif bf16_products_are_faster(queries, keys):
            y_BHTE = bf16_attention(queries, keys, values, mask)
        else:
            if H != K and queries.is_cuda and queries.dtype == torch.float32:
                # torch has no kernel for groups of them there and would keep every weight, T x S a head.
                keys, values = (x.repeat_interleave(H // K, dim=1) for x in (keys, values))
            y_BHTE = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, is_causal=mask is None and T > 1, enable_gqa=keys.shape[1] != H
            )
        y: Tensor = self.out(y_BHTE.transpose(1, 2).reshape(B, T, shape.d_attention))
        return y
