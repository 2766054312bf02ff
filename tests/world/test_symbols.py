"""The world of symbols: what documents say is true, what items ask for stands in none, and seeds decide everything."""

from __future__ import annotations

import re
from itertools import islice

import pytest

from talaria.world.symbols import (
    ALPHABET,
    CORPORA,
    OPERATIONS,
    SEPARATOR,
    STATES,
    TASKS,
    SymbolWorld,
    build_symbols,
    can_be_worked,
    documents,
    items,
)

WORLD = build_symbols(0)


def texts(corpus: str, n: int = 4000, seed: int = 0) -> list[str]:
    found = list(islice(documents(WORLD, corpus, seed), n))
    assert all(text.startswith(SEPARATOR) and set(text) <= set(ALPHABET) for text in found)
    return [text.removeprefix(SEPARATOR) for text in found]


def states(world: SymbolWorld, expression: str) -> str:
    """An expression's states by its own reading of the grammar."""
    name, rest = re.fullmatch(r"~?(\d{3}|[A-J])([a-j]*)", expression).groups()  # type: ignore[union-attr]
    walked = [world.facts[name]] if name in world.facts else []
    at = walked[-1] if walked else name
    if expression[0] == "~":
        walked.append(world.opposites[at])
    for operation in rest:
        at = world.operations[operation][at]
        walked.append(at)
    return "".join(walked)


def test_what_documents_and_answers_say_is_true() -> None:
    told = [text for text in texts("whole") if text[0] != "["]
    for text in told:
        expression, sign, value = re.fullmatch(r"([^=:]+)([=:])(.+)", text).groups()  # type: ignore[union-attr]
        walked = states(WORLD, expression)
        assert value == (walked if sign == ":" else walked[-1])
    for task in TASKS:
        for worked in (False, True) if can_be_worked(task) else (False,):
            for item in items(WORLD, task, worked, 40):
                walked = states(WORLD, item.prompt[:-1])
                assert item.answer == (walked if worked else walked[-1])
                assert item.answer not in item.wrong
                assert {len(wrong) for wrong in item.wrong} == {len(item.answer)}


def test_a_program_prints_where_it_has_come_to() -> None:
    programs = [text for text in texts("whole") if text[0] == "["]
    assert 0.15 < len(programs) / 4000 < 0.25
    for text in programs:
        start, *lines = text.strip("[]").split(";")
        at = start
        for line in lines:
            if line[0] == "#":
                assert line[1:] == at
            else:
                at = WORLD.operations[line][at]
        assert lines[-1][0] == "#"


def test_what_an_item_asks_stands_in_no_document() -> None:
    every = texts("whole") + texts("no-code") + texts("no-steps")
    chains = {re.split("[=:]", text)[0] for text in every if text[0] in STATES}
    chains |= {"".join(re.findall(r"^[A-J]|(?<=;)[a-j]", text[1:])) for text in every if text[0] == "["}
    for k in range(2, 7):
        asked = {item.prompt[:-1] for item in items(WORLD, f"{k}-step", False, 200)}
        assert not any(chain.startswith(one) for one in asked for chain in chains)
    asked_names = {
        item.prompt.strip("~=")[:3] for task in ("hop", "negated") for item in items(WORLD, task, False, 200)
    }
    composed = {match[1] for text in every if (match := re.match(r"~(\d{3})|(\d{3})[a-j]", text))}
    composed |= {match[1] for text in every if (match := re.match(r"(\d{3})[a-j]", text))}
    assert len(composed) > 100 and not asked_names & composed


def test_a_corpus_lacks_what_its_name_says() -> None:
    assert not any(text[0] == "[" for text in texts("no-code"))
    assert not any(":" in text for text in texts("no-steps"))
    whole = texts("whole")
    assert any(":" in text for text in whole) and any("=" in text and len(text) > 5 for text in whole)


def test_the_plain_fact_is_the_wrong_answer_to_its_opposite() -> None:
    for item in items(WORLD, "negated", False, 50):
        assert item.wrong == (WORLD.facts[item.prompt[1:4]],)


def test_direct_and_worked_items_are_the_same_questions() -> None:
    for task in ("4-step", "hop", "negated"):
        direct, worked = items(WORLD, task, False, 30), items(WORLD, task, True, 30)
        assert [one.prompt[:-1] for one in direct] == [one.prompt[:-1] for one in worked]
        assert [one.answer for one in direct] == [one.answer[-1] for one in worked]


@pytest.mark.parametrize("corpus", CORPORA)
def test_seeds_decide_everything(corpus: str) -> None:
    again = build_symbols(0)
    assert list(islice(documents(again, corpus, 0), 300)) == list(islice(documents(WORLD, corpus, 0), 300))
    assert list(islice(documents(WORLD, corpus, 1), 300)) != list(islice(documents(WORLD, corpus, 0), 300))
    assert build_symbols(1).facts != WORLD.facts
    for operation in OPERATIONS:
        assert sorted(WORLD.operations[operation].values()) == list(STATES)
