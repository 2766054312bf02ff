"""Agreement: shares, ties, alpha and intervals against what can be worked out by hand."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from talaria.feedback.agreement import follows, measure_agreement, pair_labels
from talaria.feedback.store import Answer, Comparison


def choice(prompt: int, annotator: str, *groups: str) -> Comparison:
    """Groups of letters, best first; answer "a" of every prompt has the lowest number."""
    ranking = [[Answer(prompt * 100 + ord(letter), letter, "m", None, {}) for letter in group] for group in groups]
    return Comparison(0, prompt, [], ranking, annotator, None, {}, datetime.now(UTC))


def test_labels_of_a_ranking_with_ties():
    assert pair_labels([[3], [1, 2]]) == {(1, 2): 0, (1, 3): -1, (2, 3): -1}
    assert follows([[1], [2], [3]], [[1], [2, 3]]) and not follows([[2], [1], [3]], [[1], [2, 3]])
    assert not follows([[1], [2]], [[1], [2, 3]]), "an answer that is missing"
    assert not follows([], [[1], [2]]) and not follows([], [[1, 2]]), "a skip is not right"


def test_shares_by_hand():
    rows = [
        choice(1, "ann", "a", "b"), choice(1, "bob", "a", "b"),  # the same
        choice(2, "ann", "a", "b"), choice(2, "bob", "b", "a"),  # the other way round
        choice(3, "ann", "ab"), choice(3, "bob", "a", "b"),  # a tie for one
        choice(4, "ann", "ab"), choice(4, "bob", "ab"),  # a tie for both
        choice(5, "ann", "a", "b"),  # nobody else
    ]  # fmt: skip
    found = measure_agreement(rows).among
    assert (found.n, found.n_prompts, found.share, found.strict_share) == (4, 4, 0.5, 0.5)
    # Krippendorff by hand over labels -1, 0, 1 with both orientations: 16 entries' coincidences / 2 = 8 values.
    # Pairs (1,1) (-1,1) (0,1) (0,0): totals of the symmetric matrix are -1: 2.5, 0: 3, 1: 2.5 of n = 8.
    # Observed disagreement 8 - 4 = 4; expected (64 - 2 * 6.25 - 9) / 7 = 42.5 / 7.
    assert found.alpha == pytest.approx(1 - 4 / (42.5 / 7), abs=1e-12)


def test_a_ranking_of_k_gives_all_its_pairs_and_people_are_paired():
    rows = [choice(1, name, "a", "b", "c") for name in ("ann", "bob", "eve")]
    found = measure_agreement(rows)
    assert found.among.n == 9 and found.among.share == 1.0
    assert found.by_annotator["ann"].n == 6


def test_held_out_annotators_are_kept_apart():
    rows = []
    for prompt in range(10):
        rows += [choice(prompt, name, "a", "b") for name in ("ann", "bob")]
        rows += [choice(prompt, name, "b", "a") for name in ("eve", "zoe")]
    report = measure_agreement(rows, held_out={"eve", "zoe"})
    assert (report.among.n, report.among.share) == (10, 1.0)
    assert (report.held_out.n, report.held_out.share) == (10, 1.0)
    assert (report.between.n, report.between.share) == (40, 0.0)


def test_one_person_twice_is_not_agreement_with_oneself():
    rows = [choice(1, "ann", "a", "b"), choice(1, "ann", "b", "a"), choice(1, "bob", "b", "a")]
    found = measure_agreement(rows).among
    assert (found.n, found.share) == (1, 1.0), "the later row counts"


def test_nothing_in_common_is_told_as_nothing_and_not_as_zero():
    found = measure_agreement([choice(1, "ann", "a", "b"), choice(2, "bob", "a", "b")]).among
    assert (found.n, found.share, found.low, found.alpha) == (0, None, None, None)


def test_alpha_is_zero_for_coins_and_does_not_depend_on_which_answer_comes_first():
    draw = random.Random(0)
    rows = [
        choice(prompt, name, *draw.choice((("a", "b"), ("b", "a"))))
        for prompt in range(4000)
        for name in ("ann", "bob")
    ]
    found = measure_agreement(rows, resamples=200).among
    assert abs(found.alpha) < 0.05 and abs(found.share - 0.5) < 0.025
    turned = [replace(row, ranking=row.ranking[::-1]) if row.prompt_id % 2 else row for row in rows]
    again = measure_agreement(turned, resamples=200).among
    assert again.alpha == pytest.approx(found.alpha, abs=1e-12) and again.share == found.share


def test_intervals_count_prompts_and_not_pairs():
    """Prompts of 9 answers whose 36 pairs stand or fall together: pairs taken as independent would give a sixth of the
    interval. 95 of 100 intervals should hold the truth of 0.8."""
    held, widths = 0, []
    for seed in range(100):
        draw = random.Random(seed)
        rows = []
        for prompt in range(60):
            rows.append(choice(prompt, "ann", *"abcdefghi"))
            rows.append(choice(prompt, "bob", *("abcdefghi" if draw.random() < 0.8 else "ihgfedcba")))
        found = measure_agreement(rows, resamples=200, seed=seed).among
        held += found.low <= 0.8 <= found.high
        widths.append(found.high - found.low)
    assert held >= 87  # binomial: 95 +- 2.2, and the percentile bootstrap is a little narrow at 60 prompts
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 60), rel=0.15)


def test_simulated_labelers_agree_as_their_accuracy_predicts():
    """Two who agree with a judge in q = 83.6 % of pairs agree with each other in q^2 + (1 - q)^2 = 72.6 %."""
    draw = random.Random(1)
    rows = []
    for prompt in range(4000):
        for name in ("ann", "bob"):
            rows.append(choice(prompt, name, *(("a", "b") if draw.random() < 0.836 else ("b", "a"))))
    found = measure_agreement(rows, resamples=300).among
    assert found.low <= 0.836**2 + 0.164**2 <= found.high


def test_what_is_helpful_and_what_is_harmless_are_two_questions():
    """They agree on both; each one's later row is the other's earlier one."""
    told = [("ann", "helpful", "ab"), ("bob", "harmless", "ba"), ("ann", "harmless", "ba"), ("bob", "helpful", "ab")]
    rows = [replace(choice(1, name, *letters), criterion=criterion) for name, criterion, letters in told]
    found = measure_agreement(rows).among
    assert (found.n, found.n_prompts, found.share) == (2, 1, 1.0)
