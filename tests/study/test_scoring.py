"""Metrics of items against hand computation, on a model whose predictions are written down."""

from __future__ import annotations

import math

import pytest
import torch

from talaria.study.scoring import encode, score_items
from talaria.world.symbols import ALPHABET, Item


class Table(torch.nn.Module):
    """Predicts behind each symbol what a table says, with probability 0.6, and all others alike."""

    def __init__(self, follows: dict[str, str]) -> None:
        super().__init__()
        rest = math.log(0.4 / (len(ALPHABET) - 1))
        self.logits_VV = torch.full((len(ALPHABET), len(ALPHABET)), rest)
        for symbol, next_one in follows.items():
            self.logits_VV[encode(symbol)[0], encode(next_one)[0]] = math.log(0.6)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return self.logits_VV[ids_BT]


def test_every_metric_of_chains_right_half_right_and_wrong() -> None:
    model = Table({":": "A", "A": "B", "B": "C", "C": "D"})
    items = [
        Item("3-step", "Jabc:", "ABC", ("ABD", "AAA")),  # right
        Item("3-step", "Jabd:", "ABB", ("ABC", "JJJ")),  # last one wrong, and a wrong answer is likelier
        Item("3-step", "Jabe:", "BCE", ("BCF", "GGG")),  # right between two mistakes
        Item("3-step", "Jabf:", "ABC", ("CBC", "ABA")),
    ]
    found = {one.metric: one for one in score_items(model, items)}  # type: ignore[arg-type]
    likely, rest = math.log(0.6), math.log(0.4 / (len(ALPHABET) - 1))
    assert found["exact_match"].score == 0.5
    assert found["exact_match"].stderr == pytest.approx(math.sqrt(1 / 3) / 2)
    assert found["step_accuracy"].score == pytest.approx((1 + 2 / 3 + 1 / 3 + 1) / 4)
    assert found["partial_credit"].score == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)
    sums = [3 * likely, 2 * likely + rest, likely + 2 * rest, 3 * likely]
    assert found["answer_log_prob"].score == pytest.approx(sum(sums) / 3 / 4)
    # Against the likelier wrong answer each: BCF is as likely as CDE.
    margins = [likely - rest, rest - likely, 0.0, likely - rest]
    assert found["answer_margin"].score == pytest.approx(sum(margins) / 4)
    assert found["choice_accuracy"].score == 0.5


def test_one_token_has_no_steps() -> None:
    model = Table({"=": "A"})
    found = score_items(model, [Item("fact", "000=", "A", ("B",)), Item("fact", "001=", "B", ("A",))])  # type: ignore[arg-type]
    assert {one.metric for one in found} == {"exact_match", "choice_accuracy", "answer_log_prob", "answer_margin"}
