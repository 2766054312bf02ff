"""Memory of serving, predicted from the shape alone."""

from __future__ import annotations

import pytest
from random_weights import random_model

from talaria.infer.engine import Engine
from talaria.infer.kv_cache import KVCache
from talaria.infer.memory import serving_memory
from talaria.model.quantized import quantize, to_bfloat16, weight_bytes
from talaria.model.shape import ModelShape

from .conftest import ByteTokenizer

SHAPES = {
    "llama": ModelShape(vocab_size=257, n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, context=96),
    "gpt2": ModelShape(
        vocab_size=300,
        n_layers=3,
        d_model=32,
        n_heads=2,
        context=40,
        norm="layernorm",
        positions="learned",
        feed_forward="gelu",
        bias=True,
    ),
    "untied": ModelShape(vocab_size=257, n_layers=1, d_model=64, n_heads=2, tie_embeddings=False, qk_norm=True),
    "width that INT4 cannot take": ModelShape(vocab_size=257, n_layers=2, d_model=48, n_heads=4, ngram_embeddings=2),
}


@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
@pytest.mark.parametrize("name", SHAPES)
def test_weights_take_the_bytes_predicted(name: str, scheme: str | None) -> None:
    shape = SHAPES[name]
    model = random_model(shape)
    made = model if scheme is None else quantize(model, scheme)  # type: ignore[arg-type]
    assert serving_memory(shape, scheme).weights == weight_bytes(made)
    to_bfloat16(made)
    assert serving_memory(shape, scheme, dtype="bfloat16").weights == weight_bytes(made)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_cache_is_that_of_rows_of_the_whole_context(name: str) -> None:
    engine = Engine(random_model(SHAPES[name]), ByteTokenizer(), max_batch_size=3)
    cache: KVCache = engine._scheduler.memory.cache
    assert serving_memory(SHAPES[name], None, rows=3).cache == sum(stored.nbytes for stored in cache._stored)
