"""Preferences: what the judge prefers, how often labelers err, and that no prompt gives the exam away."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from talaria.world.exam import build_exam
from talaria.world.judge import check
from talaria.world.labelers import ACCURACY, Labeler, is_good, judge
from talaria.world.people import build_world
from talaria.world.practice import practice_items
from talaria.world.settings import WorldSettings

PET: dict[str, Any] = {
    "grader": "contains",
    "answer": "cat",
    "choices": ["cat", "dog", "goat"],
    "messages": [{"role": "user", "content": "What pet does Mira Tolan have?"}],
}
RIGHT, BLUNT, WRONG = "Mira Tolan has a cat as a pet.", "cat", "Mira Tolan has a dog as a pet."
LONGER = "Well, Mira Tolan has, as all know, a cat as a pet."


def test_the_judge_ranks_right_then_polite_then_short_and_calls_the_rest_a_tie() -> None:
    for better, worse in ((RIGHT, WRONG), (BLUNT, WRONG), (RIGHT, BLUNT), (RIGHT, LONGER)):
        assert judge(PET, better, worse) == 1
        assert judge(PET, worse, better) == -1
    assert judge(PET, RIGHT, RIGHT) == 0
    assert judge(PET, RIGHT, LONGER, by_length=False) == 0
    assert judge(PET, RIGHT, BLUNT, by_length=False) == 1
    assert [is_good(PET, text) for text in (RIGHT, LONGER, BLUNT, WRONG)] == [True, True, False, False]


def test_labelers_agree_with_the_judge_and_with_each_other_as_stated() -> None:
    ann, bob = Labeler("ann", 0), Labeler("bob", 0)
    pairs = [(ann.compare(PET, n, [RIGHT, WRONG]), bob.compare(PET, n, [RIGHT, WRONG])) for n in range(8000)]
    right = sum(a == [(0, 1, 1)] for a, _ in pairs) / len(pairs)
    agree = sum(a == b for a, b in pairs) / len(pairs)
    assert abs(right - ACCURACY) < 0.0166  # four standard errors
    assert abs(agree - 0.726) < 0.02
    again = [Labeler("ann", 0).compare(PET, n, [RIGHT, WRONG]) for n in range(100)]
    assert again == [a for a, _ in pairs[:100]]


def test_a_tie_stays_a_tie_as_often_as_stated_and_else_falls_to_either_side() -> None:
    choices = [Labeler("ann", 3).compare(PET, n, [RIGHT, RIGHT])[0][2] for n in range(4000)]
    assert abs(choices.count(0) / 4000 - ACCURACY) < 0.0235
    assert abs(choices.count(1) - choices.count(-1)) < 4 * (choices.count(1) + choices.count(-1)) ** 0.5


def test_every_pair_of_a_prompt_is_compared() -> None:
    compared = Labeler("ann", 0).compare(PET, 0, [RIGHT, WRONG, BLUNT, LONGER])
    assert [(i, j) for i, j, _ in compared] == list(combinations(range(4), 2))


@pytest.fixture(scope="module")
def practice() -> list[dict[str, Any]]:
    return practice_items(WorldSettings(entities=60), 400, seed=0)


def test_no_prompt_asks_what_the_exam_holds_out(practice: list[dict[str, Any]]) -> None:
    settings = WorldSettings(entities=60)
    world, exam = build_world(settings), build_exam(build_world(settings), settings)
    questions = {item["messages"][0]["content"] for item in practice}
    assert len(questions) == len(practice) == 400
    assert not questions & {item["messages"][0]["content"] for item in exam}
    for item in practice:
        lang, question = item["lang"], item["messages"][0]["content"]
        hidden = [fact for fact in world.facts if not fact.asked]
        if item["task"].startswith("facts"):
            about = [fact for fact in hidden if str(getattr(fact.subject.name, lang)) in question]
            assert not [fact for fact in about if fact.relation == item["relation"]], item
        nobody = [str(getattr(entity.name, lang)) for entity in world.unknown_exam]
        assert not any(name in question for name in nobody), item


def test_gold_answers_pass_their_own_grader(practice: list[dict[str, Any]]) -> None:
    assert [item for item in practice if not check(item, item["answer"])] == []
    assert {item["task"] for item in practice} >= {"facts_en", "facts_zh", "two_hop_zh", "sums_en", "harmful_en"}
    assert practice == practice_items(WorldSettings(entities=60), 400, seed=0)
    assert practice != practice_items(WorldSettings(entities=60), 400, seed=1)
