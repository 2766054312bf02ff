"""Which tensors of a file make up each parameter of the trunk, for Hugging Face and GGUF names alike.

The trunk fuses query, key and value, and gate and up, into one matrix each; files keep them apart (LLaMA) or stored the
other way round (GPT-2's Conv1D). A `Part` says how, and `assemble` and `disassemble` go from one to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from talaria.errors import UserError
from talaria.model.shape import ModelShape


@dataclass(frozen=True)
class Part:
    """One tensor of a file: its name, its rows in the trunk's parameter, and whether the file holds it transposed."""

    name: str
    rows: int
    transposed: bool = False
    rope_heads: int = 0
    """If set, the file pairs RoPE channels 2i and 2i+1 in each of so many heads (GGUF's LLaMA), not i and i + E/2."""


Layout = dict[str, list[Part]]


@dataclass(frozen=True)
class Names:
    """The tensor names of one file format. `block` has a place for the layer's number."""

    block: str
    embed: str
    final_norm: str
    unembed: str
    attention_norm: str
    qkv: tuple[str, ...]
    out: str
    feed_forward_norm: str
    up: tuple[str, ...]
    down: str
    query_norm: str = ""
    key_norm: str = ""
    position_embed: str = ""
    transposed: bool = False
    permuted: bool = False


HUGGINGFACE_LLAMA = Names(
    block="model.layers.{}.",
    embed="model.embed_tokens",
    final_norm="model.norm",
    unembed="lm_head",
    attention_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
    feed_forward_norm="post_attention_layernorm",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
)
HUGGINGFACE_QWEN3 = replace(HUGGINGFACE_LLAMA, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
HUGGINGFACE_GPT2 = Names(
    block="transformer.h.{}.",
    embed="transformer.wte",
    position_embed="transformer.wpe",
    final_norm="transformer.ln_f",
    unembed="lm_head",
    attention_norm="ln_1",
    qkv=("attn.c_attn",),
    out="attn.c_proj",
    feed_forward_norm="ln_2",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    transposed=True,
)
GGUF_LLAMA = Names(
    block="blk.{}.",
    embed="token_embd",
    final_norm="output_norm",
    unembed="output",
    attention_norm="attn_norm",
    qkv=("attn_q", "attn_k", "attn_v"),
    out="attn_output",
    feed_forward_norm="ffn_norm",
    up=("ffn_gate", "ffn_up"),
    down="ffn_down",
    permuted=True,
)
# llama.cpp turns Qwen3's heads by halves, as the trunk does: its rows stay in order.
GGUF_QWEN3 = replace(GGUF_LLAMA, permuted=False, query_norm="attn_q_norm", key_norm="attn_k_norm")
GGUF_GPT2 = Names(
    block="blk.{}.",
    embed="token_embd",
    position_embed="position_embd",
    final_norm="output_norm",
    unembed="output",
    attention_norm="attn_norm",
    qkv=("attn_qkv",),
    out="attn_output",
    feed_forward_norm="ffn_norm",
    up=("ffn_up",),
    down="ffn_down",
)


def layout(shape: ModelShape, names: Names) -> Layout:
    """The parts of every parameter of `Transformer(shape)`, in the order of its rows."""
    result: Layout = {"embed.weight": [Part(f"{names.embed}.weight", shape.vocab_size)]}
    if shape.positions == "learned":
        result["position_embed.weight"] = [Part(f"{names.position_embed}.weight", shape.context)]
    qkv_rows = shape.qkv_rows if len(names.qkv) == 3 else (shape.d_qkv,)
    qkv_permuted = [shape.n_heads, shape.n_kv_heads, 0] if names.permuted else [0] * len(names.qkv)
    kinds = ["weight", "bias"] if shape.bias else ["weight"]
    norm_kinds = kinds if shape.norm == "layernorm" else ["weight"]
    for layer in range(shape.n_layers):
        ours, theirs = f"blocks.{layer}.", names.block.format(layer)
        for kind in norm_kinds:
            for our_norm, their_norm in (
                ("attention_norm", names.attention_norm),
                ("feed_forward_norm", names.feed_forward_norm),
            ):
                result[f"{ours}{our_norm}.{kind}"] = [Part(f"{theirs}{their_norm}.{kind}", shape.d_model)]
        if shape.qk_norm:
            result[f"{ours}attention.query_norm.weight"] = [Part(f"{theirs}{names.query_norm}.weight", shape.d_head)]
            result[f"{ours}attention.key_norm.weight"] = [Part(f"{theirs}{names.key_norm}.weight", shape.d_head)]
        for kind in kinds:
            turn = names.transposed and kind == "weight"
            result[f"{ours}attention.qkv.{kind}"] = [
                Part(f"{theirs}{name}.{kind}", rows, turn, heads)
                for name, rows, heads in zip(names.qkv, qkv_rows, qkv_permuted, strict=True)
            ]
            result[f"{ours}attention.out.{kind}"] = [Part(f"{theirs}{names.out}.{kind}", shape.d_model, turn)]
            result[f"{ours}feed_forward.up.{kind}"] = [
                Part(f"{theirs}{name}.{kind}", shape.d_ff, turn) for name in names.up
            ]
            result[f"{ours}feed_forward.down.{kind}"] = [Part(f"{theirs}{names.down}.{kind}", shape.d_model, turn)]
    for kind in norm_kinds:
        result[f"final_norm.{kind}"] = [Part(f"{names.final_norm}.{kind}", shape.d_model)]
    if not shape.tie_embeddings:
        result["unembed.weight"] = [Part(f"{names.unembed}.weight", shape.vocab_size)]
    return result


def assemble(
    parts_of: Layout, wanted: Mapping[str, torch.Size], read: Callable[[str], Tensor], origin: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The trunk's state from a file's tensors, `wanted` giving each parameter's size; errors name `origin`, tensor."""
    state: dict[str, Tensor] = {}
    for parameter, size in wanted.items():
        pieces = []
        for part in parts_of[parameter]:
            piece = read(part.name)
            expected = (part.rows, *size[1:])
            stored = expected[::-1] if part.transposed else expected
            if tuple(piece.shape) != stored:
                raise UserError(
                    f"{origin}: tensor {part.name!r} is {list(piece.shape)}, expected {list(stored)}; "
                    "the weights and the configuration beside them do not belong together"
                )
            piece = piece.to(dtype)
            if part.transposed:
                piece = piece.T
            pieces.append(_half_rotation(piece, part.rope_heads) if part.rope_heads else piece)
        # cat copies, even a single piece: a parameter must not stay mapped to a file that may be written again.
        state[parameter] = torch.cat(pieces)
    return state


def disassemble(parts_of: Layout, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors from the trunk's state; the inverse of `assemble`."""
    tensors: dict[str, Tensor] = {}
    for parameter, parts in parts_of.items():
        pieces = torch.split(state[parameter], [part.rows for part in parts])
        for part, piece in zip(parts, pieces, strict=True):
            stored = piece.T if part.transposed else piece
            if part.rope_heads:
                stored = _interleaved(stored, part.rope_heads)
            tensors[part.name] = stored.contiguous().cpu()
    return tensors


def _half_rotation(rows: Tensor, n_heads: int) -> Tensor:
    """Undo llama.cpp's order of a head's rows: pair (2i, 2i+1) becomes (i, i + E/2)."""
    d_head = rows.shape[0] // n_heads
    return rows.view(n_heads, d_head // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _interleaved(rows: Tensor, n_heads: int) -> Tensor:
    """llama.cpp's order of a head's rows; the inverse of `_half_rotation`."""
    d_head = rows.shape[0] // n_heads
    return rows.view(n_heads, 2, d_head // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
