"""Tiny random models and a tokenizer whose every byte is a token: engine tests need no trained files."""

from __future__ import annotations

import pytest
from random_weights import random_model

from talaria.infer.engine import Engine
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


@pytest.fixture(params=[LLAMA, GPT2, SHIFTED], ids=["llama", "gpt2", "shifted"])
def model(request) -> Transformer:
    return tiny_model(request.param)


@pytest.fixture
def engine(model) -> Engine:
    return Engine(model, ByteTokenizer())
