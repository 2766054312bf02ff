"""A model and held-out text in, a few passages out: an opening, how the text goes on, and how the model does.

They are for a person to look at, in the report of a run that has no exam; nothing is scored.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from talaria.eval.prompts import Strategy
from talaria.infer.engine import Engine
from talaria.tokens.shards import Shards
from talaria.tokens.tokenizer import Tokenizer

_PASSAGES = 6
_OPENING_TOKENS, _MORE_TOKENS = 24, 64
_SHORTEST = 8
_READ_TOKENS = 1_000_000
_SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_p": 0.95}
"""What `talaria chat` answers with."""


def continue_held_out(engine: Engine, shards: Shards, strategy: Strategy, seed: int) -> list[dict[str, str]]:
    """Rows of `opening`, `text` and `answer`: the beginnings of up to six held-out documents, evenly spread.

    A model that chats is given the opening as a user's message. Of a short document half is the opening; one of a few
    tokens is left out, and so is one whose opening leaves no room in the context.
    """
    tokenizer = engine.tokenizer
    passages = _passages(shards, min(_OPENING_TOKENS, engine.context // 4))
    openings = [_text(tokenizer, opening) for opening, _ in passages]
    if strategy == "chat":
        prompts = [engine.chat_prompt([{"role": "user", "content": text}]) for text in openings]
    else:
        prompts = [[*tokenizer.prompt_prefix_ids, *opening] for opening, _ in passages]
    fits = [0 < len(prompt) < engine.context for prompt in prompts]
    given = [prompt for prompt, room in zip(prompts, fits, strict=True) if room]
    answers = iter(engine.generate(given, max_tokens=_MORE_TOKENS, seed=seed, **_SAMPLING))
    return [
        {"opening": text, "text": _text(tokenizer, more), "answer": next(answers).text}
        for text, (_, more), room in zip(openings, passages, fits, strict=True)
        if room
    ]


def _passages(shards: Shards, longest_opening: int) -> list[tuple[list[int], list[int]]]:
    """Openings of documents and what follows, as ids; of text without documents, from evenly spread places."""
    tokens = shards.tokens(0, _READ_TOKENS)
    longest = longest_opening + _MORE_TOKENS
    if shards.separator_id is None:
        starts = list(range(0, len(tokens), longest))
        ends = [start + longest for start in starts]
    else:
        separators: list[int] = np.flatnonzero(tokens == shards.separator_id).tolist()
        starts = [0, *(place + 1 for place in separators)]  # the tail of a text may begin within a document
        ends = [*separators, len(tokens)]
    found = [(start, min(start + longest, end)) for start, end in zip(starts, ends, strict=True)]
    found = [(start, end) for start, end in found if end - start >= _SHORTEST and end <= len(tokens)]
    chosen = [found[i * len(found) // _PASSAGES] for i in range(_PASSAGES)] if len(found) > _PASSAGES else found
    cuts = [(start, start + min(longest_opening, (end - start) // 2), end) for start, end in chosen]
    return [(tokens[start:cut].tolist(), tokens[cut:end].tolist()) for start, cut, end in cuts]


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """What the ids spell, without the part of a character that a cut leaves."""
    return tokenizer.decode(ids).strip("\ufffd")
