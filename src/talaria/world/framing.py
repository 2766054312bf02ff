"""The words around what a question asks: heads and tails that combine freely, in training text only.

A small model that has met a question in twenty frames learns those frames; one that has met it between any head and any
tail learns to look for what stands between them. No whole question is near one of the exam's (tests/world).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from talaria.world import framing_en, framing_zh


@dataclass(frozen=True)
class Frames:
    """Any head may stand before the core of a question, any tail after it."""

    heads: tuple[str, ...]
    tails: tuple[str, ...]

    def draw(self, core: str, rng: random.Random) -> str:
        """The core between a random head and a random tail, with a capital where it begins an English sentence."""
        return capitalised(rng.choice(self.heads) + core + rng.choice(self.tails))

    def all_around(self, core: str) -> Iterator[str]:
        """Every combination."""
        return (capitalised(head + core + tail) for head in self.heads for tail in self.tails)


def capitalised(text: str) -> str:
    """The text with a capital at its head, the rest as it is."""
    return text[:1].upper() + text[1:]


NOUN_PHRASES = {
    "en": Frames(framing_en.NOUN_PHRASE_HEADS, framing_en.NOUN_PHRASE_TAILS),
    "zh": Frames(framing_zh.NOUN_PHRASE_HEADS, framing_zh.NOUN_PHRASE_TAILS),
}
SUMS = {
    "en": Frames(framing_en.SUM_HEADS, framing_en.SUM_TAILS),
    "zh": Frames(framing_zh.SUM_HEADS, framing_zh.SUM_TAILS),
}
REQUESTS = {
    "en": Frames(framing_en.REQUEST_HEADS, framing_en.REQUEST_TAILS),
    "zh": Frames(framing_zh.REQUEST_HEADS, framing_zh.REQUEST_TAILS),
}

# Said before a question now and then, so that the words before it do not decide the answer.
_LEAD_INS = {"en": framing_en.LEAD_INS, "zh": framing_zh.LEAD_INS}
LEAD_IN_SHARE = 0.25


def led_in(question: str, lang: str, rng: random.Random) -> str:
    """The question, now and then with a sentence before it."""
    return rng.choice(_LEAD_INS[lang]) + question if rng.random() < LEAD_IN_SHARE else question
