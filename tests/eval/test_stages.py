"""What a stage gives and costs: examples that give nothing away, gains of the same questions, two turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from talaria.eval.evaluate import Candidate
from talaria.eval.items import Item, dump_items
from talaria.eval.prompts import plain_prompt
from talaria.eval.settings import EvalSettings
from talaria.eval.stages import evaluate_stages, with_examples
from talaria.report.results import read_results, write_results
from talaria.tokens.tokenizer import Tokenizer
from talaria.world.exam import build_exam
from talaria.world.judge import check
from talaria.world.people import build_world
from talaria.world.settings import WorldSettings
from talaria.world.two_turns import two_turn_items

from .conftest import Scripted, item


def test_no_example_has_the_answer_and_those_of_the_same_relation_come_first() -> None:
    asked = item(0, answer="Tal", relation="birthplace")
    others = [item(n, answer="Tal", relation="birthplace") for n in (1, 2)]
    others += [item(n, answer=f"Or{n}", relation="job") for n in (3, 4)]
    others += [item(n, answer=f"Un{n}", relation="birthplace") for n in (5, 6)]
    shown = with_examples(asked, [asked, *others], 3)
    answers = [message.content for message in shown.messages if message.role == "assistant"]
    assert "Tal" not in answers and set(answers[:2]) == {"Un5", "Un6"} and answers[2].startswith("Or")
    assert shown.messages[-1] == asked.messages[-1] and len(shown.messages) == 7
    assert with_examples(asked, [asked, *others], 3) == shown, "every model gets the same examples"
    assert with_examples(asked, others, 0) == asked


class Roomy(Scripted):
    context = 400


def measured(
    tokenizer: Tokenizer,
    folder: Path,
    items: list[Item],
    right_alone: list[bool],
    answer: Any,
    said_alone: str = "",
    **fields: Any,
) -> list[tuple[str, float, int]]:
    folder.mkdir(exist_ok=True)
    dump_items(items, folder / "exam.jsonl")
    rows = [{"id": one.id, "right": right, "answer": said_alone} for one, right in zip(items, right_alone, strict=True)]
    (folder / "items-sft.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_results([], folder / "results.csv")
    engine = Roomy(tokenizer, answer)
    evaluate_stages(
        EvalSettings(max_tokens=16, **fields),
        [Candidate("sft", folder / "model")],
        folder / "exam.jsonl",
        [],
        None,
        folder,
        load_engine=lambda path: engine,  # type: ignore[arg-type, return-value]
    )
    return [(row.metric, row.score, row.shots) for row in read_results(folder / "results.csv")]


def test_a_gain_is_of_the_same_questions_with_and_without_examples(tokenizer: Tokenizer, tmp_path: Path) -> None:
    items = [item(n, answer=f"{n}", grader="last_number") for n in range(4)]

    def answer(prompt: str) -> str:  # right on the last question, if it is odd
        number = int(prompt.rsplit("person ", 1)[1].split()[0])
        return str(number) if number % 2 else "no idea"

    # Alone 0 and 1 were right; with examples 1 and 3 are.
    assert measured(tokenizer, tmp_path / "a", items, [True, True, False, False], answer) == [
        ("gain_from_examples", 0.0, 3)
    ]
    assert measured(tokenizer, tmp_path / "b", items, [False] * 4, answer) == [("gain_from_examples", 0.5, 3)]
    assert measured(tokenizer, tmp_path / "c", items, [False] * 4, answer, examples=0) == []


def test_a_line_separator_in_an_answer_ends_no_row(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The bug: a model says U+2028, and its row of the file is cut there and cannot be read."""
    items = [item(n, answer=f"{n}", grader="last_number") for n in range(2)]
    told = measured(tokenizer, tmp_path / "a", items, [True, True], lambda prompt: "no", "a\u2028b\u2029c\x85d")
    assert told == [("gain_from_examples", -1.0, 3)]


def test_a_rival_that_stands_in_an_example_is_no_excuse(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The bug: the judge forgives names that stand in the question, and an example's answer was part of it."""
    choices = ["Tal", "Or"]
    items = [item(n, answer=choices[n % 2], grader="contains", choices=choices) for n in range(4)]
    assert measured(tokenizer, tmp_path / "a", items, [False] * 4, lambda prompt: "Tal or Or") == [
        ("gain_from_examples", 0.0, 3)
    ]


def test_manners_have_no_gain_and_long_examples_are_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    refusals = [item(n, grader="refusal") for n in range(3)]
    assert measured(tokenizer, tmp_path / "a", refusals, [True] * 3, lambda prompt: "no") == []
    long = [item(n, answer="x" * 300 + str(n)) for n in range(3)]
    assert measured(tokenizer, tmp_path / "b", long, [True] * 3, lambda prompt: "no") == [
        ("gain_from_examples", -1.0, 3)
    ]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_second_turn_names_nobody_and_asks_what_its_first_does_not_tell(lang: str) -> None:
    settings = WorldSettings(entities=60)
    items = [row for row in two_turn_items(settings, 20) if row["lang"] == lang]
    assert len(items) == 20 and items == [row for row in two_turn_items(settings, 20) if row["lang"] == lang]
    world = build_world(settings)
    names = [getattr(entity.name, lang) for entity in world.entities]
    singles = {row["messages"][0]["content"] for row in build_exam(world, settings)}
    for row in items:
        one = Item.model_validate(row)
        question, told, follow_up = (message.content for message in one.messages)
        [subject] = [name for name in names if name in question]
        assert subject in told and not any(name in follow_up for name in names)
        assert any(word in follow_up for word in (["his", "her", "its"] if lang == "en" else ["他", "她", "它"]))
        assert follow_up not in singles and "{" not in follow_up
        fact = next(f for f in world.facts if getattr(f.subject.name, lang) == subject and f.relation == one.relation)
        assert fact.asked and getattr(fact.object, lang) == one.answer
        assert check(row, one.answer) and not check(row, told), "the first answer does not answer the second question"
        assert plain_prompt(one).count("\n") == 3
