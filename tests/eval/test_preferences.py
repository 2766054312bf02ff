"""Win rates: ties are told apart and counted for nobody, length can be left out."""

from __future__ import annotations

import json
import weakref
from math import log
from pathlib import Path
from typing import Any

import pytest

from talaria.eval import preferences
from talaria.eval.preferences import Preferences, best_of, best_of_n_kl, draw_items, win_rate
from talaria.eval.settings import EvalSettings
from talaria.infer.contract import Completion
from talaria.world.labelers import judge

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


def test_a_letter_less_wins_nothing() -> None:
    """The bug: of two wrong answers the shorter name was preferred, and a policy learned short names."""
    item = ITEM | {"choices": ["cat", "dog", "wolf"]}
    near, far = "She has a wolf.", "She has a wolf and more."
    assert judge(item, WRONG, near) == judge(item, near, WRONG) == 0
    assert judge(item, WRONG, far) == 1 and judge(item, far, WRONG) == -1
    assert judge(item, WRONG, far, by_length=False) == 0
    assert judge(item, "x" * 4, "x" * 5) == 0 and judge(item, "x" * 4, "x" * 6) == 1


def test_best_of_n_takes_the_highest_score_of_each_prompt() -> None:
    assert best_of([0.1, 0.5, 0.2, 3.0, -1.0, 2.0], 3) == [1, 3]
    assert best_of_n_kl(1) == 0 and best_of_n_kl(16) == pytest.approx(log(16) - 15 / 16)


def test_a_line_separator_in_a_question_ends_no_row(tmp_path: Path) -> None:
    """The bug: U+2028 inside a string cut the row of the exam that holds it."""
    rows = [{"task": "facts", "id": n, "answer": "a\u2028b\u2029c\x85d"} for n in range(3)]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert sorted(row["id"] for row in draw_items(tmp_path / "exam.jsonl", 3, 0)) == [0, 1, 2]


def test_only_the_first_models_engine_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: the weights and the memory of every policy were held to the end."""

    class Silent:
        def chat_prompt(self, messages: Any) -> list[int]:
            return [1]

        def generate(self, prompts: list[list[int]], n: int = 1, **options: Any) -> list[Completion]:
            return [Completion("", [2], [0.0], "stop", 1) for _ in range(n * len(prompts))]

    engines: list[weakref.ref[Silent]] = []
    alive: list[int] = []

    def load(path: Path, **options: Any) -> Silent:
        alive.append(sum(engine() is not None for engine in engines))
        engine = Silent()
        engines.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr(preferences, "load", load)
    monkeypatch.setattr(preferences, "log_ratios", lambda policy, base, items, answers: [0.0] * len(items))
    told = Preferences(EvalSettings(), [{"messages": []}] * 2, None, 0)
    for name in ("sft", "dpo", "grpo", "ppo"):
        told.answer(name, Path(name))
    assert alive == [0, 1, 1, 1]
    assert engines[0]() is not None, "best-of-n draws from it"
    assert {name for name, model in told.to_json()["models"].items() if "kl" in model} == {"dpo", "grpo", "ppo"}
