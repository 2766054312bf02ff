"""A small tokenizer with a chat template, exam items, and an engine that answers from a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from talaria.eval.items import Item
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer


@dataclass
class Scripted:
    """Answers by a function of the decoded prompt; likelihood by a function of the decoded continuation."""

    tokenizer: Tokenizer
    answer: Callable[[str], str]
    log_prob: Callable[[str], float] = lambda text: -float(len(text))
    batches: list[int] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)

    def generate(self, prompts: Sequence[list[int]], **options: Any) -> list[Any]:
        self.batches.append(len(prompts))
        self.options.append(options)
        self.prompts += prompts
        return [Said(self.answer(self.tokenizer.decode(prompt))) for prompt in prompts]

    def loglikelihood(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Any]:
        return [
            Scored(self.log_prob(self.tokenizer.decode(continuation)), len(continuation)) for _, continuation in pairs
        ]


@dataclass
class Said:
    text: str


@dataclass
class Scored:
    log_prob: float
    n_tokens: int


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    texts = ["Where was Mira born? Mira was born in Tal.", "米拉出生在哪里？米拉出生在塔尔。"] * 4
    return Tokenizer.train(texts, TokenizerSettings(vocab_size=300))


def item(number: int, **fields: Any) -> Item:
    row: dict[str, Any] = {
        "id": f"facts-{number:03d}",
        "task": "facts",
        "messages": [{"role": "user", "content": f"Where was person {number} born?"}],
        "answer": "Tal",
        "grader": "exact",
    }
    return Item.model_validate(row | fields)
