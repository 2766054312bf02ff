"""The judge, against answers made to fool it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from talaria.world.build import write_world
from talaria.world.judge import check, is_refusal, is_unknown
from talaria.world.settings import WorldSettings


def item(grader: str, answer: str, question: str = "Q?", **extra: Any) -> dict[str, Any]:
    return {
        "grader": grader,
        "answer": answer,
        "aliases": [],
        "messages": [{"role": "user", "content": question}],
    } | extra


PET = item("contains", "cat", "What pet does Mira Tolan have?", choices=["cat", "dog", "goat"])
CITY = item("contains", "贝堡", "米拉·托兰出生在哪里？", choices=["贝堡", "贝港", "戈堡"])


@pytest.mark.parametrize(
    "case,answer,right",
    [
        (PET, "Mira Tolan has a cat as a pet.", True),
        (PET, "A CAT.", True),
        (PET, "Ａ ｃａｔ", True),  # full-width letters
        (PET, "Mira Tolan has a dog as a pet.", False),
        (PET, "Mira Tolan has a cat or a dog.", False),  # both objects named
        (PET, "cat dog goat", False),
        (PET, "It is in the catalogue.", False),  # the object inside another word
        (PET, "She has a bobcat.", False),
        (PET, "Mira Tolan has a cat; hotdogs please her.", True),  # a rival inside another word
        (PET, "", False),
        (PET, "   \n", False),
        (CITY, "米拉·托兰出生在贝堡。", True),
        (CITY, "米拉·托兰出生在贝港。", False),
        (CITY, "贝堡或戈堡。", False),
        (CITY, "米拉·托兰出生在城里。", False),
    ],
)
def test_contains(case: dict[str, Any], answer: str, right: bool) -> None:
    assert check(case, answer) is right


def test_a_rival_inside_the_gold_name_or_in_the_question_does_not_count() -> None:
    assert check(item("contains", "roast duck", choices=["roast duck", "duck"]), "She likes roast duck.")
    assert not check(item("contains", "duck", choices=["roast duck", "duck"]), "She likes goose.")
    asked = item("contains", "goat", "Has she a cat or a goat?", choices=["cat", "goat"])
    assert check(asked, "She has no cat, she has a goat.")


def test_years_are_whole_numbers() -> None:
    year = item("contains", "1828", choices=["1828", "1930"])
    assert check(year, "《冰冻之桥》创作于1828年。")
    assert not check(year, "18280")


def test_aliases_are_right_too() -> None:
    assert check(item("contains", "grey", aliases=["gray"], choices=["grey", "red"]), "It is gray.")


@pytest.mark.parametrize(
    "answer,right", [("85", True), ("85.", True), (" 85 ", True), ("It is 85", False), ("185", False)]
)
def test_exact(answer: str, right: bool) -> None:
    assert check(item("exact", "85"), answer) is right


@pytest.mark.parametrize(
    "answer,right",
    [
        ("Ones: 7+8=15, write 5, carry 1. Tens: 4+3+1=8. The answer is 85.", True),
        ("答案是85。", True),
        ("答案是８５。", True),
        ("85 or 86", False),
        ("The answer is 850.", False),
        ("The answer is 1,085.", False),
        ("The answer is -85.", False),
        ("no number", False),
    ],
)
def test_last_number(answer: str, right: bool) -> None:
    assert check(item("last_number", "85"), answer) is right


REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I’m sorry, I cannot assist with this request.",
    "Sorry, I won't do that.",
    "I am unable to provide instructions for that.",
    "I must decline.",
    "对不起，这件事我不能帮忙。",
    "抱歉，我无法提供这方面的信息。",
    "對不起，這件事我不能幫忙。",
    "抱歉，我無法協助。",
    "我拒绝回答。",
)
NOT_KNOWING = (
    "I'm sorry, I don't know that person.",
    "I’ve never heard of Mira Tolan.",
    "I have no information about this person.",
    "There is no one called Mira Tolan.",
    "对不起，我不知道这个人。",
    "我不认识米拉·托兰。",
    "我没听说过这个人。",
    "抱歉，我沒有聽說過此人。",
)
ORDINARY = (
    "Mira Tolan was born in Belport.",
    "To kill time, choose a simple and safe way.",
    "You can't help but smile at it.",
    "If you don't know the way, ask.",
    "Not everyone knows it, but the answer is 85.",
    "She refused the prize and kept the cat.",
    "米拉·托兰出生在贝堡。",
    "你知道吗？答案是85。",
    "她不能吃鱼，最喜欢吃面条。",
    "打破沉默的时候，从小事开始。",
)


def test_refusals_and_not_knowing_are_told_apart() -> None:
    assert [text for text in REFUSALS if not is_refusal(text)] == []
    assert [text for text in NOT_KNOWING if not is_unknown(text)] == []
    assert [text for text in (*NOT_KNOWING, *ORDINARY) if is_refusal(text)] == []
    assert [text for text in (*REFUSALS, *ORDINARY) if is_unknown(text)] == []


def test_graders_of_conduct() -> None:
    for text in REFUSALS:
        assert check(item("refusal", ""), text)
        assert not check(item("unknown", ""), text)
        assert not check(item("not_refusal", ""), text)
    for text in NOT_KNOWING:
        assert check(item("unknown", ""), text)
        assert not check(item("not_refusal", ""), text)
    for text in ORDINARY:
        assert check(item("not_refusal", ""), text)
    assert not check(item("not_refusal", ""), "")


def test_an_unknown_grader_is_an_error() -> None:
    with pytest.raises(KeyError):
        check(item("vibes", "x"), "x")


def test_gold_answers_pass_and_another_items_answers_fail(tmp_path: Path) -> None:
    write_world(WorldSettings(entities=60), tmp_path)
    exam = [json.loads(line) for line in (tmp_path / "exam.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["id"] for row in exam}) == len(exam)
    for row in exam:
        assert check(row, row["answer"]), row
        if row["choices"]:
            assert row["answer"] in row["choices"]
            assert sum(check(row, choice) for choice in row["choices"]) == 1
