"""What serving a model needs, told before the model is there: bytes of weights, of keys and values, of a step's work.

    serving_memory(shape, "int4", rows=1)

Python, torch and the tokenizer come on top, and so does the fp32 model while `quantize` makes it smaller; a folder that
`talaria quantize` wrote is read without that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from talaria.infer.prefix_store import BLOCK, n_blocks_for
from talaria.model.quantized import n_int8_blocks
from talaria.model.quantized_linear import BLOCK as INT4_ROWS
from talaria.model.quantized_linear import EXPAND_AT_ONCE, EXPAND_AT_ONCE_ON_GPU, GROUP
from talaria.model.shape import ModelShape

PREFILL_CHUNK = 512
"""Tokens of prompts that run at once while somebody waits for a next token."""
CACHE_SHARE = 2
"""Memory of keys and values over what full rows need: room for the beginnings of earlier requests."""
POSITIONS_AT_ONCE = 8192
"""Positions of prompts, padding included, that run at once while nobody waits."""
_FP32, _BF16 = 4, 2


@dataclass(frozen=True)
class ServingMemory:
    """Bytes. `cache` holds the rows' keys and values, and as much again that is kept of earlier requests."""

    weights: int
    cache: int
    workspace: int


def serving_memory(
    shape: ModelShape, scheme: str | None, rows: int = 1, dtype: Literal["float32", "bfloat16"] = "float32"
) -> ServingMemory:
    """Bytes for `rows` sequences of the whole context, on a CPU, or with `dtype` "bfloat16", which is for GPUs, on one;
    `scheme` "int8" or "int4", or None where nothing is rounded."""
    cache = shape.kv_cache_bytes(CACHE_SHARE * rows, n_blocks_for(shape.context) * BLOCK, dtype)
    size = _BF16 if dtype == "bfloat16" else _FP32
    return ServingMemory(_weight_bytes(shape, scheme, size), cache, _workspace_bytes(shape, scheme, rows, size))


def _weight_bytes(shape: ModelShape, scheme: str | None, size: int) -> int:
    """What `model.quantized.weight_bytes` counts once the weights are there; `size` of one that is not rounded."""
    if scheme is None:
        return size * shape.n_params()
    matrices = _matrices(shape)
    n_tables = 1 + shape.ngram_embeddings + (0 if shape.tie_embeddings else 1)
    in_matrices = shape.n_layers * sum(n * k for n, k in matrices)
    rest = shape.n_params() - in_matrices - n_tables * shape.vocab_size * shape.d_model
    table = shape.vocab_size * (shape.d_model + _FP32)
    n_int8 = n_int8_blocks(shape.n_layers) if scheme == "int4" else shape.n_layers
    int8_layer = sum(_int8_bytes(n, k) for n, k in matrices)
    # INT4 is for the feed-forward alone, the last two.
    int4_layer = sum(
        _int4_bytes(n, k) if i >= 2 and k % GROUP == 0 else _int8_bytes(n, k) for i, (n, k) in enumerate(matrices)
    )
    layers = n_int8 * int8_layer + (shape.n_layers - n_int8) * int4_layer
    return size * rest + n_tables * table + shape.vocab_size * _BF16 + layers


def _matrices(shape: ModelShape) -> tuple[tuple[int, int], ...]:
    """Rows and columns of a layer's matrices."""
    return (
        (shape.d_qkv, shape.d_model),
        (shape.d_model, shape.d_attention),
        (sum(shape.up_rows), shape.d_model),
        (shape.d_model, shape.d_ff),
    )


def _int8_bytes(n: int, k: int) -> int:
    """A byte a weight; a row's scale, and the one that torch's kernel is given in its place."""
    return n * (k + _FP32 + _BF16)


def _int4_bytes(n: int, k: int) -> int:
    """Half a byte a weight; scale and zero of each group."""
    n_padded = -(-n // INT4_ROWS) * INT4_ROWS
    return n_padded * (k // 2 + k // GROUP * 2 * _BF16)


def _workspace_bytes(shape: ModelShape, scheme: str | None, rows: int, size: int) -> int:
    """The larger of the prompts in the feed-forward and of a step's logits; both are gone when the step ends."""
    n = min(POSITIONS_AT_ONCE, rows * shape.context)
    # Residual and normed input; gate and up; the gate's SiLU and the product.
    chunk = n * (2 * shape.d_model + sum(shape.up_rows) + 2 * shape.d_ff) * size
    largest = max(n * k for n, k in _matrices(shape))
    in_head = shape.vocab_size * shape.d_model
    on_cpu = size == _FP32
    if scheme is not None:
        # Input and product in bfloat16; the weight expanded piece by piece, on its way from q to bfloat16.
        at_once = EXPAND_AT_ONCE if on_cpu else min(EXPAND_AT_ONCE_ON_GPU, max(largest, in_head))
        chunk += n * (shape.d_model + 2 * sum(shape.up_rows)) * _BF16 + 3 * at_once * _BF16
    elif on_cpu:
        chunk += _FP32 * largest  # oneDNN's own copy of the weight, in its order
    logits = 3 * rows * shape.vocab_size * _FP32
    return max(chunk, logits)
