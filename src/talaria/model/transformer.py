"""The trunk: token ids in, logits out. GPT-2, LLaMA and their mixtures are one module whose variant is `ModelShape`.

    model = Transformer(shape_from_depth(4, vocab_size=4096))
    logits_BTV = model(tokens_BT)

Shapes: B batch, T positions, S key positions, V vocabulary, D model width, F feed-forward width, E head width. There is
no dropout: one pass over data does not need it, and evaluation equals training.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talaria.errors import UserError
from talaria.model.attention import Attention, Cache, rope_angles
from talaria.model.linear import Linear
from talaria.model.norms import build_norm
from talaria.model.shape import ModelShape
from talaria.model.swiglu import swiglu


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020) with gate and up fused in one matrix, gate first; or GELU in its tanh form, as GPT-2."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gated = shape.feed_forward == "swiglu"
        self.up = Linear(shape.d_model, sum(shape.up_rows), bias=shape.bias)
        self.down = Linear(shape.d_ff, shape.d_model, bias=shape.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h = self.up(x_BTD)
        if self.gated:
            h = swiglu(h)
        else:
            h = F.gelu(h, approximate="tanh")
        y: Tensor = self.down(h)
        return y


def shifted(x: Tensor, n: int, name: str, positions_BT: Tensor | None, cache: Cache | None) -> Tensor:
    """`x` (B, T, ...) moved n positions later; zero where the sequence, or its document, starts less than n ago."""
    before = x.new_zeros(x.shape[0], n, *x.shape[2:]) if cache is None else cache.carry(name, x, n)
    moved = torch.cat([before, x], dim=1)[:, : x.shape[1]]
    if positions_BT is None:
        return moved
    inside = (positions_BT >= n).view(*positions_BT.shape, *(1,) * (x.dim() - 2))
    return moved * inside.to(x.dtype)


class TokenShift(nn.Module):
    """x_t + mix * (x_{t-1} - x_t), one learned mix a channel (RWKV's token shift, Peng et al. 2023, section 3.1)."""

    def __init__(self, shape: ModelShape, name: str) -> None:
        super().__init__()
        self.name = name
        self.mix = nn.Parameter(torch.empty(shape.d_model))

    def forward(self, x_BTD: Tensor, positions_BT: Tensor | None, cache: Cache | None) -> Tensor:
        return torch.lerp(x_BTD, shifted(x_BTD, 1, self.name, positions_BT, cache), self.mix.to(x_BTD.dtype))


class Block(nn.Module):
    """Pre-norm residual block: attention, then feed-forward."""

    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.attention_norm = build_norm(shape)
        self.attention = Attention(shape, layer)
        self.feed_forward_norm = build_norm(shape)
        self.feed_forward = FeedForward(shape)
        self.attention_shift = TokenShift(shape, f"attention.{layer}") if shape.token_shift else None
        self.feed_forward_shift = TokenShift(shape, f"feed_forward.{layer}") if shape.token_shift else None

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        positions_BT: Tensor | None,
        mask: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        h = self.attention_norm(x_BTD)
        if self.attention_shift is not None:
            h = self.attention_shift(h, positions_BT, cache)
        x_BTD = x_BTD + self.attention(h, rope, mask, cache)
        h = self.feed_forward_norm(x_BTD)
        if self.feed_forward_shift is not None:
            h = self.feed_forward_shift(h, positions_BT, cache)
        y: Tensor = x_BTD + self.feed_forward(h)
        return y


def _table(rows: int, columns: int) -> nn.Embedding:
    """Without the initial values that nn.Embedding draws: on "meta" these load torch's compiler, in seconds."""
    table: nn.Embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
        torch.empty(rows, columns), freeze=False
    )
    return table


class Transformer(nn.Module):
    """Decoder-only transformer.

    `generator` makes the initial weights reproducible; without it torch's global one is used. With `device="meta"`
    nothing is allocated: call `to_empty(device=...)`, then `reset_parameters()` or load a state.
    """

    def __init__(
        self, shape: ModelShape, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.shape = shape
        # Built without memory first, so that no layer draws initial values that reset_parameters then overwrites.
        with torch.device("meta"):
            self.embed = _table(shape.vocab_size, shape.d_model)
            if shape.positions == "learned":
                self.position_embed = _table(shape.context, shape.d_model)
            self.ngram_embeds = nn.ModuleList(
                _table(shape.vocab_size, shape.d_model) for _ in range(shape.ngram_embeddings)
            )
            self.blocks = nn.ModuleList(Block(shape, layer) for layer in range(shape.n_layers))
            self.final_norm = build_norm(shape)
            if not shape.tie_embeddings:
                self.unembed = nn.Linear(shape.d_model, shape.vocab_size, bias=False)
        target = torch.get_default_device() if device is None else torch.device(device)
        if target.type != "meta":
            self.to_empty(device=target)
            self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial weights.

        Hidden matrices have deviation 1/sqrt(columns), so that activations keep their size at any width (Yang et al.
        2022, "Tensor Programs V", table 3); projections into the residual stream are 0, so that every block begins as
        the identity (Zhang et al. 2019, "Fixup"; nanochat); tables 0.02 and learned positions 0.01 (GPT-2); biases 0,
        norms 1. A token shift starts at mixes from 0 to 1 across the channels.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name.endswith("shift.mix"):
                parameter.copy_(torch.linspace(0.0, 1.0, parameter.numel()))
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            elif name.startswith("position_embed"):
                parameter.normal_(0.0, 0.01, generator=generator)
            elif name.endswith(("attention.out.weight", "feed_forward.down.weight")):
                parameter.zero_()
            elif name.startswith("blocks."):
                parameter.normal_(0.0, 1 / math.sqrt(parameter.shape[1]), generator=generator)
            else:
                parameter.normal_(0.0, 0.02, generator=generator)

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits (B, T, V), fp32, for int64 token ids (B, T).

        `positions_BT`: int64, each token's place in its document; None is 0..T-1, and a cache needs it given.
        `mask`: None is causal; else bool, broadcastable to (B, 1, T, S), true where a query may see a key, or numbers
        in the model's dtype that are added to the scores.
        """
        return self.head(self.hidden(tokens_BT, positions_BT, mask, cache))

    def hidden(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the final norm; arguments as in `forward`."""
        T, longest = tokens_BT.shape[1], self.shape.context
        if longest < T:
            raise UserError(f"a sequence of {T} tokens is longer than the model's context of {longest}; shorten it")
        assert cache is None or positions_BT is not None, "a cache needs positions_BT: where the new tokens stand"
        x_BTD = self.embed(tokens_BT)
        for n, ngram_embed in enumerate(self.ngram_embeds, start=1):
            earlier_BT = shifted(tokens_BT, n, f"ngram.{n}", positions_BT, cache)
            exists_BT1 = self._has_earlier(n, tokens_BT, positions_BT).unsqueeze(-1).to(x_BTD.dtype)
            x_BTD = x_BTD + ngram_embed(earlier_BT) * exists_BT1
        rope: tuple[Tensor, Tensor] | None = None
        if self.shape.positions == "rope":
            default_BT = torch.arange(T, device=tokens_BT.device).unsqueeze(0)
            rope = rope_angles(self.shape, default_BT if positions_BT is None else positions_BT)
        elif positions_BT is None:
            x_BTD = x_BTD + self.position_embed.weight[:T]
        else:
            x_BTD = x_BTD + self.position_embed(positions_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, rope, positions_BT, mask, cache)
        hidden_BTD: Tensor = self.final_norm(x_BTD)
        return hidden_BTD

    def head(self, hidden_BTD: Tensor) -> Tensor:
        """Logits (..., V), fp32 (fp64 where the model is), of hidden states (..., D)."""
        logits = F.linear(hidden_BTD, self.head_weight())
        return logits if logits.dtype == torch.float64 else logits.float()

    def head_weight(self) -> Tensor:
        """The output table (V, D): the embedding's own where the two are tied."""
        return self.embed.weight if self.shape.tie_embeddings else self.unembed.weight

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    def fused_rows(self) -> dict[nn.Parameter, tuple[int, ...]]:
        """Rows of each matrix in the parameters that hold several: query, key and value; gate and up."""
        rows = {"attention.qkv.weight": self.shape.qkv_rows, "feed_forward.up.weight": self.shape.up_rows}
        return {block.get_parameter(name): of for block in self.blocks for name, of in rows.items()}

    @staticmethod
    def _has_earlier(n: int, tokens_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        """Bool (B or 1, T): is there a token n places before, in the same document?"""
        if positions_BT is None:
            positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).unsqueeze(0)
        return positions_BT >= n
