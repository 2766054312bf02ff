"""A number of parameters in, a shape of about that size out; and the recipe that trains it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from talaria.model.shape import ModelShape, shape_from_depth

_DEPTHS = (*range(1, 13), *range(14, 33, 2), *range(36, 101, 4), *range(108, 401, 12), *range(448, 1000, 64))
_WIDTH_PER_LAYER = ((1e6, 32), (1e8, 64), (1e10, 96), (math.inf, 128))
"""Up to so many parameters, channels a layer of depth: narrow when small, as the demo's 128 by 4, wide as GPT-3's
12,288 by 96."""
_VOCABULARIES = ((5e6, 2048), (3e7, 4096), (2e8, 16_384), (math.inf, 32_768))
"""So that embeddings stay a smaller part of the model than its layers."""
_TOKENS_AN_ENTITY = 2400
"""Of the world's text, which grows with its entities; with a small vocabulary up to half more (counted: 3,500 of 1,000
entities by 2,048 tokens, 2,800 by 4,096)."""
_ENTITIES = (60, 4000)
_EPOCHS = 4
"""Over the world's text, as far as it is large enough: so often repeated text is worth nearly what new text is."""


def times_over_the_world(tokens: int) -> float:
    """How often so many tokens read the embedded world, as large as `recipe_text` makes it."""
    return tokens / _TOKENS_AN_ENTITY / _entities(tokens)


def _entities(tokens: int) -> int:
    return min(max(math.ceil(tokens / _TOKENS_AN_ENTITY / _EPOCHS), _ENTITIES[0]), _ENTITIES[1])


def vocabulary_for(params: float) -> int:
    """A vocabulary for a model of so many parameters."""
    return next(size for limit, size in _VOCABULARIES if params < limit)


def shape_near(params: float, vocab_size: int, context: int) -> ModelShape:
    """The shape nearest to `params` among depths, widths in whole heads, and proportions that train well."""
    wanted = next(width for limit, width in _WIDTH_PER_LAYER if params < limit)
    best, best_cost = shape_from_depth(1, vocab_size, context, d_model=32, n_heads=1), math.inf
    for depth in _DEPTHS:
        head = 32 if depth <= 4 else 64
        # 12 L d^2 + V d = N, solved for d.
        exact = (math.sqrt(vocab_size**2 + 48 * depth * params) - vocab_size) / (24 * depth)
        for heads in {max(1, math.floor(exact / head)), max(1, math.ceil(exact / head))}:
            shape = shape_from_depth(depth, vocab_size, context, d_model=heads * head, n_heads=heads)
            miss = abs(math.log(shape.n_params() / params))
            proportion = abs(math.log(shape.d_model / depth / wanted))
            cost = miss + 0.05 * proportion**2
            if cost < best_cost:
                best, best_cost = shape, cost
    return best


def recipe_text(
    shape: ModelShape,
    tokens: int,
    batch_tokens: int,
    learning_rate: float,
    corpus: Sequence[Path],
    command: str,
    predicted: str,
    plan: str,
) -> str:
    """A recipe for `talaria run`: from the files of `corpus`, or from the embedded world, as large as the tokens
    want. `predicted` is told in its head, `plan` is its table of what the trainer holds the run against."""
    if corpus:
        paths = ", ".join(json.dumps(str(path.resolve()), ensure_ascii=False) for path in corpus)
        source = f"[corpus]\npaths = [{paths}]\n"
    else:
        source = f"[world]\nentities = {_entities(tokens)}\n\n[corpus]\n"
    lines = "".join(f"# {line}\n" for line in [f"Made by `{command}`.", *predicted.splitlines()])
    return f"""\
{lines}
{source}
[tokenizer]
vocab_size = {shape.vocab_size}

[model]
depth = {shape.n_layers}
d_model = {shape.d_model}
n_heads = {shape.n_heads}
context = {shape.context}

[pretrain]
tokens = {tokens}
batch_tokens = {batch_tokens}
optimizer = {{ learning_rate = {learning_rate:.4g} }}

[plan]
{plan.strip()}

[eval]
"""
