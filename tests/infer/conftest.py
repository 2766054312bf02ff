"""Tiny random models and a tokenizer whose every byte is a token: engine tests need no trained files."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from weakref import WeakKeyDictionary

import pytest
import torch
from random_weights import random_model

from talaria.infer.engine import Engine
from talaria.infer.kv_cache import KVCache
from talaria.model.compiled import PAGE, CompiledTransformer, compile_transformer
from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer

LLAMA = {"norm": "rmsnorm", "positions": "rope", "feed_forward": "swiglu", "n_kv_heads": 2, "tie_embeddings": False}
GPT2 = {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "bias": True}
SHIFTED = {"token_shift": True, "ngram_embeddings": 2}


class ByteTokenizer:
    """One token a byte, 256 ends a text; `bos_id` is None unless a test sets it."""

    vocab_size = 257
    eos_id = 256
    stop_ids = frozenset({256})
    chat_template = None

    def __init__(self, bos_id: int | None = None) -> None:
        self.bos_id = bos_id
        self.prompt_prefix_ids = [] if bos_id is None else [bos_id]

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return b"" if token == 256 else bytes([token])

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"".join(self.token_bytes(token) for token in ids)

    def decode(self, ids: list[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


def tiny_model(variant: dict, seed: int = 0, context: int = 96, vocab_size: int = 257) -> Transformer:
    """A random model whose choices differ clearly from place to place."""
    shape = ModelShape(vocab_size=vocab_size, n_layers=2, d_model=32, n_heads=4, context=context, **variant)
    return random_model(shape, seed).eval()


COMPILED: WeakKeyDictionary[Transformer, CompiledTransformer] = WeakKeyDictionary()
"""What engines run in place of a trunk, which stays the reference."""


@cache
def compiled_trunk(name: str) -> Transformer:
    """The tiny model of that name, whose engines run it compiled; compiled once, so nobody may change it."""
    model = tiny_model(VARIANTS[name])
    COMPILED[model] = compile_transformer(model)
    return model


def runs(model: Transformer) -> Transformer | CompiledTransformer:
    """What an engine of this model is to run."""
    return COMPILED.get(model, model)


def memory_of(model: Transformer, n_positions: int) -> int:
    """`cache_bytes` for as many whole blocks as lie in n_positions."""
    if model in COMPILED:
        return n_positions // PAGE * model.shape.kv_cache_bytes(1, PAGE)
    return n_positions // 16 * KVCache.bytes_per_block(model.shape, torch.float32)


def model_named(name: str) -> Transformer:
    """A fixture's parameter, such as "compiled-llama"."""
    if not name.startswith("compiled-"):
        return tiny_model(VARIANTS[name])
    if find_spec("openvino") is None:
        pytest.skip("needs openvino: pip install 'talaria-lm[serve]'")
    return compiled_trunk(name.removeprefix("compiled-"))


VARIANTS = {"llama": LLAMA, "gpt2": GPT2, "shifted": SHIFTED}
KEEPERS = ["llama", "gpt2", "compiled-llama", "compiled-gpt2"]


@pytest.fixture(params=["llama", "gpt2", "shifted", "compiled-llama", "compiled-gpt2"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return model_named(request.param)


@pytest.fixture(params=KEEPERS)
def keeper(request: pytest.FixtureRequest) -> Transformer:
    """A model of which prefixes are kept."""
    return model_named(request.param)


@pytest.fixture(params=["llama", "compiled-llama"])
def llama(request: pytest.FixtureRequest) -> Transformer:
    return model_named(request.param)


@pytest.fixture
def engine(model: Transformer) -> Engine:
    return Engine(runs(model), ByteTokenizer())
