"""An item in, token ids out: the chat template's for an assistant, a question on a page for a model that only read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from talaria.eval.items import Item
from talaria.tokens.chat import encode_chat

Strategy = Literal["chat", "plain"]

_LABELS = {"en": ("Q: ", "A:", " "), "zh": ("问：", "答：", "")}
"""Language -> how pages mark a question, an answer, and what stands before the answer's first word."""


def prompt_ids(tokenizer: Any, item: Item, strategy: Strategy) -> list[int]:
    """The ids a model is asked to continue."""
    if strategy == "chat":
        messages = [message.model_dump() for message in item.messages]
        return list(encode_chat(tokenizer, messages, add_generation_prompt=True).ids)
    return _plain_ids(tokenizer, plain_prompt(item))


def likelihood_pair(tokenizer: Any, item: Item, answer: str, strategy: Strategy) -> tuple[list[int], list[int]]:
    """(context ids, continuation ids) of `answer` as the whole reply: what ends a reply is part of the continuation,
    so that an answer which begins another one is not favoured."""
    if strategy == "chat":
        messages = [message.model_dump() for message in item.messages]
        prompt: Sequence[int] = prompt_ids(tokenizer, item, strategy)
        whole = encode_chat(tokenizer, [*messages, {"role": "assistant", "content": answer}]).ids
    else:
        text = plain_prompt(item)
        prompt = _plain_ids(tokenizer, text)
        whole = _plain_ids(tokenizer, f"{text}{_labels(item)[2]}{answer}\n")
    shared = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    return list(whole[:shared]), list(whole[shared:])


def plain_prompt(item: Item) -> str:
    """The conversation as a page of questions and answers, up to where the next answer begins."""
    question, answer, gap = _labels(item)
    lines = []
    for message in item.messages:
        if message.role == "system":
            lines.append(message.content)
        else:
            lines.append(question + message.content if message.role == "user" else answer + gap + message.content)
    return "\n".join([*lines, answer])


def _labels(item: Item) -> tuple[str, str, str]:
    return _LABELS.get(item.lang, _LABELS["en"])


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer.prompt_prefix_ids, *tokenizer.encode(text)]
