"""Which of two answers is preferred: by the world's judge, who never errs, and by labelers, who do.

In: an item with the rule that grades it (docs/architecture.md) and two answers. Out: +1 where the first is preferred,
-1 where the second is, 0 where neither is. The rules are part of docs/world.md and carry a version of their own.

    judge(item, "Mira Tolan has a cat as a pet.", "cat")                  # 1: both right, the first is a full sentence
    Labeler("ann", seed=0).compare(item, prompt_number, answers)          # the same, with a person's mistakes
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from talaria.world.judge import check

PREFERENCE_VERSION = "3"  # of the section "Preferences" in docs/world.md; a change of its rules raises it
LONGER = 1.25  # times as many characters: nobody prefers one of two answers for a letter less
ACCURACY = 0.836  # q, so that two labelers agree in q^2 + (1 - q)^2 = 72.6 % of the pairs


def judge(item: dict[str, Any], a: str, b: str, *, by_length: bool = True) -> int:
    """The right answer; else the polite full sentence; else the shorter, where the other is longer by more than a
    quarter; else neither. `by_length=False` leaves the length out, so that answers that differ in it alone are tied."""
    merit_a, merit_b = _merit(item, a), _merit(item, b)
    if merit_a == merit_b and by_length:
        length_a, length_b = len(a.strip()), len(b.strip())
        return int(length_b > LONGER * length_a) - int(length_a > LONGER * length_b)
    return int(merit_a > merit_b) - int(merit_a < merit_b)


def is_good(item: dict[str, Any], answer: str) -> bool:
    """Right and polite: no answer is preferred to it but a clearly shorter one of its kind."""
    return _merit(item, answer) == (True, True)


class Labeler:
    """A person who agrees with the judge in a share `accuracy` of the pairs and else prefers the other answer; either,
    where the judge prefers neither. Errors of different pairs and labelers are independent, and the same
    name, seed, prompt and pair have the same one whenever they are asked."""

    def __init__(self, name: str, seed: int, accuracy: float = ACCURACY) -> None:
        self.name = name
        self._seed, self._accuracy = seed, accuracy

    def compare(self, item: dict[str, Any], prompt: int, answers: Sequence[str]) -> list[tuple[int, int, int]]:
        """Every pair (i, j, choice) of the answers to prompt number `prompt`, i < j."""
        return [
            (i, j, self._choice(judge(item, answers[i], answers[j]), f"{prompt}/{i}/{j}"))
            for i, j in combinations(range(len(answers)), 2)
        ]

    def _choice(self, gold: int, pair: str) -> int:
        draw = random.Random(f"{self._seed}/{self.name}/{pair}")
        if draw.random() < self._accuracy:
            return gold
        return -gold if gold else draw.choice((-1, 1))


def _merit(item: dict[str, Any], answer: str) -> tuple[bool, bool]:
    return check(item, answer), _is_full_sentence(answer)


def _is_full_sentence(answer: str) -> bool:
    """Ends as a sentence does, and has at least three words or six Chinese characters."""
    text = answer.strip()
    chinese = sum("\u4e00" <= character <= "\u9fff" for character in text)
    return text.endswith((".", "!", "?", "。", "！", "？")) and (len(text.split()) >= 3 or chinese >= 6)
