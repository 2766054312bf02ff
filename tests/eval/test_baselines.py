"""Null baselines: what the questions give away by themselves."""

from __future__ import annotations

import pytest

from talaria.eval.baselines import chance_rows, majority_rows

from .conftest import item


def test_majority_is_per_relation() -> None:
    towns = ["Tal", "Tal", "Or", "Sen"]
    crafts = ["weaver", "weaver", "weaver", "smith", "potter", "baker"]
    items = [item(i, answer=town, relation="town") for i, town in enumerate(towns)]
    items += [item(10 + i, answer=craft, relation="craft") for i, craft in enumerate(crafts)]
    [row] = majority_rows({"facts": items})
    assert (row.model, row.score, row.n) == ("majority", (2 + 3) / 10, 10)
    assert row.stderr == pytest.approx((0.25 / 10) ** 0.5)


def test_always_refusing_is_a_perfect_null_on_refusals_and_none_on_ordinary_requests() -> None:
    refusal = "I can't help with that."
    harmful = [item(i, task="harmful", answer=refusal, grader="refusal") for i in range(4)]
    ordinary = [item(i, task="ordinary", answer="Of course.", grader="not_refusal") for i in range(4)]
    scores = {row.task: row.score for row in majority_rows({"harmful": harmful, "ordinary": ordinary})}
    assert scores == {"harmful": 1.0, "ordinary": 1.0}


def test_chance_is_the_mean_of_one_over_choices() -> None:
    items = [item(0, choices=["Tal", "Or"]), item(1, choices=["Tal", "Or", "Sen", "Vo"])]
    rows = {row.metric: row for row in chance_rows({"facts": items}, max_choices=2)}
    assert rows["accuracy"].score == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert rows["choice_accuracy"].score == pytest.approx(1 / 2), "two of the four are ranked"
    assert rows["accuracy"].stderr is None


def test_chance_says_nothing_where_an_item_has_no_choices() -> None:
    assert chance_rows({"facts": [item(0, choices=["Tal", "Or"]), item(1)]}, max_choices=8) == []
