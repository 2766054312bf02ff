"""Losses of learning from preferences and rewards, against the formulas written out by hand in float64."""

from __future__ import annotations

from itertools import combinations
from math import comb, exp, log

import pytest
import torch
from torch import Tensor

from talaria.train.policy_losses import (
    advantages,
    clipped_policy_loss,
    clipped_value_loss,
    group_advantages,
    kl_penalty,
    preference_loss,
    ranking_loss,
    whitened,
)

GARBAGE = 1e6
"""Stands wherever there is no answer: a loss that looks there is unmistakable."""


def ragged(seed: int = 0, rows: int = 5, places: int = 9) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(rows, places, dtype=torch.bool)
    for row in range(rows):
        start = int(torch.randint(0, places - 3, (), generator=generator))
        end = int(torch.randint(start + 1, places + 1, (), generator=generator))
        mask[row, start:end] = True
    return mask, generator


def drawn(mask: Tensor, generator: torch.Generator) -> Tensor:
    values = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    return torch.where(mask, values, GARBAGE)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_advantages_are_the_discounted_sum_of_surprises_written_out(gamma: float, lam: float) -> None:
    """Also the bugs: an advantage off by one place, a value after the last token."""
    mask, generator = ragged()
    rewards, values = drawn(mask, generator), drawn(mask, generator)
    result = advantages(rewards, values, mask, gamma, lam)
    for row in range(len(mask)):
        places = mask[row].nonzero().flatten().tolist()
        r = [float(rewards[row, place]) for place in places]
        v = [float(values[row, place]) for place in places] + [0.0]  # nothing comes after the end
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        for t, place in enumerate(places):
            by_hand = sum((gamma * lam) ** (l - t) * delta[l] for l in range(t, len(r)))
            assert float(result[row, place]) == pytest.approx(by_hand, abs=1e-12)
    assert (result[~mask] == 0).all()


def test_with_lambda_one_a_return_is_the_reward_still_to_come() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    rewards = torch.tensor([[0.0, -1.0, 0.0, 5.0]], dtype=torch.float64)
    values = torch.tensor([[3.0, 1.0, -2.0, 0.5]], dtype=torch.float64)
    returns = advantages(rewards, values, mask, 1.0, 1.0) + values
    assert returns.tolist() == [[4.0, 4.0, 5.0, 5.0]]


def test_padding_does_not_count_in_whitening() -> None:
    mask, generator = ragged(1)
    x = drawn(mask, generator)
    result = whitened(x, mask)
    inside = x[mask]
    mean = sum(inside.tolist()) / len(inside)
    deviation = (sum((value - mean) ** 2 for value in inside.tolist()) / len(inside)) ** 0.5
    assert torch.allclose(result[mask], (inside - mean) / (deviation + 1e-8), atol=1e-12, rtol=0)
    assert (result[~mask] == 0).all()
    wider = whitened(torch.cat([x, torch.full_like(x, GARBAGE)], 1), torch.cat([mask, torch.zeros_like(mask)], 1))
    assert torch.equal(wider[:, : x.shape[1]], result)


def test_the_policy_loss_is_the_clipped_one_and_its_gradient_stops_where_clipping_does() -> None:
    mask, generator = ragged(2)
    old, advantage = drawn(mask, generator), drawn(mask, generator)
    new = (old + 0.5 * torch.randn(old.shape, generator=generator, dtype=torch.float64)).requires_grad_()
    loss, clipped = clipped_policy_loss(new, old, advantage, mask, 0.2)
    by_hand, stopped = 0.0, torch.zeros_like(mask)
    for row, place in mask.nonzero().tolist():
        ratio, a = exp(float((new.detach() - old)[row, place])), float(advantage[row, place])
        kept = min(max(ratio, 0.8), 1.2)
        by_hand -= min(ratio * a, kept * a)
        stopped[row, place] = kept * a < ratio * a
    assert loss.item() == pytest.approx(by_hand, abs=1e-12)
    assert int(clipped) == int(stopped.sum()) > 0
    loss.backward()
    assert new.grad is not None
    assert (new.grad[stopped] == 0).all() and (new.grad[~mask] == 0).all()
    ratio_advantage = (-(new - old).exp() * advantage)[mask & ~stopped]
    assert torch.allclose(new.grad[mask & ~stopped], ratio_advantage, atol=1e-12, rtol=0)


def test_the_value_loss_takes_the_larger_error_of_the_clipped_and_the_plain_value() -> None:
    mask, generator = ragged(3)
    old, values, returns = drawn(mask, generator), drawn(mask, generator), drawn(mask, generator)
    loss, clipped = clipped_value_loss(values, old, returns, mask, 0.2)
    plain, kept, count = 0.0, 0.0, 0
    for row, place in mask.nonzero().tolist():
        v, o, target = (float(x[row, place]) for x in (values, old, returns))
        near = o + min(max(v - o, -0.2), 0.2)
        plain += 0.5 * (v - target) ** 2
        kept += 0.5 * max((v - target) ** 2, (near - target) ** 2)
        count += (near - target) ** 2 > (v - target) ** 2
    assert float(loss) == pytest.approx(kept, abs=1e-12) and int(clipped) == count > 0
    assert float(clipped_value_loss(values, old, returns, mask, None)[0]) == pytest.approx(plain, abs=1e-12)


def test_the_kl_penalty_is_that_of_answer_tokens_only_and_never_negative() -> None:
    mask, generator = ragged(4)
    own, reference = drawn(mask, generator), drawn(mask, generator)
    by_hand = 0.0
    for row, place in mask.nonzero().tolist():
        log_ratio = float(reference[row, place] - own[row, place])
        by_hand += exp(log_ratio) - 1 - log_ratio
    assert float(kl_penalty(own, reference, mask)) == pytest.approx(by_hand, abs=1e-10)
    assert float(kl_penalty(own, own, mask)) == 0.0


def minus_log_sigmoid(x: float) -> float:
    return log(1 + exp(-x))


def test_the_ranking_loss_is_equation_one_of_instructgpt() -> None:
    scores = torch.tensor([0.3, -1.2, 2.0, 0.9], dtype=torch.float64)
    order = [2, 0, 3, 1]  # best first
    pairs = [(order[a], order[b]) for a, b in combinations(range(4), 2)]
    by_hand = sum(minus_log_sigmoid(float(scores[w] - scores[l])) for w, l in pairs) / comb(4, 2)
    share = torch.ones(len(pairs), dtype=torch.float64)
    assert float(ranking_loss(scores, torch.tensor(pairs), share)) == pytest.approx(by_hand, abs=1e-12)
    turned = torch.tensor([(loser, winner) for winner, loser in pairs])
    assert float(ranking_loss(scores, turned, 1 - share)) == pytest.approx(by_hand, abs=1e-12)


def test_a_tie_asks_for_equal_scores_and_not_for_a_winner() -> None:
    scores = torch.tensor([1.5, 0.5], dtype=torch.float64, requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([[0, 1]]), torch.tensor([0.5]))
    assert loss.item() == pytest.approx(0.5 * (minus_log_sigmoid(1.0) + minus_log_sigmoid(-1.0)), abs=1e-12)
    loss.backward()
    assert scores.grad is not None and scores.grad[0] > 0 > scores.grad[1]  # down with the higher one
    equal = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    ranking_loss(equal, torch.tensor([[0, 1]]), torch.tensor([0.5])).backward()
    assert equal.grad is not None and (equal.grad == 0).all()


def test_dpo_is_the_ranking_loss_of_log_ratios() -> None:
    own, reference = torch.tensor([-4.0, -7.0], dtype=torch.float64), torch.tensor([-5.0, -6.5], dtype=torch.float64)
    loss = preference_loss(own, reference, torch.tensor([[0, 1]]), torch.tensor([1.0]), beta=0.1)
    assert float(loss) == pytest.approx(minus_log_sigmoid(0.1 * ((-4 + 5) - (-7 + 6.5))), abs=1e-12)
    assert float(preference_loss(own, own, torch.tensor([[0, 1]]), torch.tensor([1.0]), 0.1)) == pytest.approx(log(2))


def test_a_group_is_judged_against_itself_and_one_that_agrees_teaches_nothing() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [3.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    result = group_advantages(rewards)
    assert torch.allclose(result[0], torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64), atol=1e-5)
    assert (result[1] == 0).all()
    # Their mean is not quite they, and a reward model's pieces round differently.
    assert (group_advantages(torch.full((2, 7), -1.3)) == 0).all()
    assert (group_advantages(torch.tensor([[0.5, 0.5 + 6e-8, 0.5]])) == 0).all()
    deviation = (3 * 0.75**2 + 2.25**2) ** 0.5 / 2
    assert float(result[2, 0]) == pytest.approx(2.25 / deviation, abs=1e-5)
