"""Win rates: ties are told apart and counted for nobody, length can be left out."""

from __future__ import annotations

from math import log

import pytest

from talaria.eval.preferences import best_of, best_of_n_kl, win_rate

ITEM = {"grader": "contains", "answer": "cat", "choices": ["cat", "dog"], "messages": []}
RIGHT, LONGER, WRONG = "She has a cat.", "She has a cat, as all know.", "She has a dog."


def test_ties_are_counted_apart_and_a_shorter_answer_wins_by_length_alone() -> None:
    own, other = [RIGHT, RIGHT, RIGHT, WRONG], [RIGHT, LONGER, WRONG, RIGHT]
    told = win_rate([ITEM] * 4, own, other, by_length=True)
    assert (told["wins"], told["ties"], told["losses"], told["share"]) == (2, 1, 1, 2 / 3)
    assert told["net"] == 0.25
    controlled = win_rate([ITEM] * 4, own, other, by_length=False)
    assert (controlled["wins"], controlled["ties"], controlled["losses"], controlled["share"]) == (1, 2, 1, 0.5)
    nothing = win_rate([ITEM] * 3, [RIGHT] * 3, [RIGHT] * 3, by_length=True)
    assert nothing["share"] is None and nothing["net"] == 0


def test_best_of_n_takes_the_highest_score_of_each_prompt() -> None:
    assert best_of([0.1, 0.5, 0.2, 3.0, -1.0, 2.0], 3) == [1, 3]
    assert best_of_n_kl(1) == 0 and best_of_n_kl(16) == pytest.approx(log(16) - 15 / 16)
