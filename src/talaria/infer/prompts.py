"""Text or token ids in, ids that a model can read out; what it cannot read is refused, by its name. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from talaria.errors import UserError
from talaria.model.shape import ModelShape
from talaria.tokens.tokenizer import Tokenizer

Prompt = str | Sequence[int]


def encode_prompt(tokenizer: Tokenizer, shape: ModelShape, prompt: Prompt, name: str) -> list[int]:
    """A str comes without a chat template, behind the tokenizer's prompt prefix; ids stay as they are.

    Raises UserError for ids outside the model's vocabulary.
    """
    if isinstance(prompt, str):
        return tokenizer.prompt_prefix_ids + tokenizer.encode(prompt)
    ids = list(prompt)
    if ids and not 0 <= min(ids) <= max(ids) < shape.vocab_size:
        raise UserError(
            f"{name}: token ids must lie in 0..{shape.vocab_size - 1}; encode it with this engine's tokenizer"
        )
    return ids


def check_room(shape: ModelShape, ids: Sequence[int], name: str) -> int:
    """How many tokens of an answer the context has room for. Raises UserError for no prompt, and for no room."""
    if not ids:
        raise UserError(f"{name} is empty and the tokenizer puts no token before it; write something")
    room = shape.context - len(ids)
    if room < 1:
        raise UserError(
            f"{name} is {len(ids)} tokens long and the model's context is {shape.context}; "
            f"shorten it to at most {shape.context - 1} tokens, to leave room for an answer"
        )
    return room


def encode_pair(
    tokenizer: Tokenizer, shape: ModelShape, pair: tuple[Prompt, Prompt], index: int
) -> tuple[list[int], list[int]]:
    """Context and continuation `index` of a log-likelihood, each encoded by itself; neither comes out empty.

    A context of no tokens becomes the bos token, or else the eos token. Raises UserError for an empty continuation and
    for a pair that is longer than the context.
    """
    context, continuation = pair
    context_ids = encode_prompt(tokenizer, shape, context, f"context {index}")
    if not context_ids:
        first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        if first is None:
            raise UserError(f"context {index} is empty and the tokenizer has no bos or eos token to stand for it")
        context_ids = [first]
    if isinstance(continuation, str):
        continuation_ids = tokenizer.encode(continuation)
    else:
        continuation_ids = encode_prompt(tokenizer, shape, continuation, f"continuation {index}")
    if not continuation_ids:
        raise UserError(f"continuation {index} is empty; give at least one token to score")
    # The last token is only predicted, never read, so context + 1 tokens fit.
    if len(context_ids) + len(continuation_ids) > shape.context + 1:
        raise UserError(
            f"pair {index} is {len(context_ids)} + {len(continuation_ids)} tokens long and the model's context is "
            f"{shape.context}; shorten its context"
        )
    return context_ids, continuation_ids
