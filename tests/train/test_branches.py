"""Rows of several answers behind one prompt: every number is what it is in a row of the answer's own."""

from __future__ import annotations

import pytest
import torch
from random_weights import random_model

from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer
from talaria.train.answers import answer_log_probs, in_pieces, over_pieces, pad_answers
from talaria.train.branches import answers_a_row, branch_rows, row_length
from talaria.train.cores import Cut
from talaria.train.grpo import as_rows
from talaria.train.log_probs import chosen_log_probs

ROWS = [
    ([5, 6, 7, 8], [[9, 0], [9, 9, 3, 0], [4]]),
    ([11], [[12, 13, 0], [13]]),
    ([6, 0, 0, 9, 31, 32], [[3, 0, 0, 2, 2]]),
]


@pytest.fixture(scope="module")
def policy() -> Transformer:
    return random_model(ModelShape(vocab_size=64, n_layers=2, d_model=32, n_heads=2, context=64), seed=0).double()


def test_a_branch_reads_its_prompt_and_itself_at_its_own_positions(policy: Transformer) -> None:
    """The bugs: an answer that reads its neighbour, positions that run on through the row, a first token that is
    predicted from another answer, padding that is read."""
    branches = branch_rows(ROWS)
    assert branches.inputs_BT.shape == (3, max(row_length(*row) for row in ROWS)) == (3, 10)
    told = torch.stack(answer_log_probs(policy, branches))[:, branches.mask_BT]
    alone = pad_answers(*zip(*[(prompt, answer) for prompt, own in ROWS for answer in own], strict=True))
    expected = torch.stack(answer_log_probs(policy, alone))[:, alone.mask_BT]
    assert told.shape == expected.shape
    assert torch.allclose(told, expected, atol=1e-11, rtol=0)

    weights = torch.randn(told.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters = list(policy.parameters())
    gradients = [torch.autograd.grad((x[0] * weights).sum(), parameters, retain_graph=True) for x in (told, expected)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-10, rtol=0)


def test_rows_cut_into_pieces_lose_nothing(policy: Transformer) -> None:
    branches = branch_rows(sorted(ROWS, key=lambda row: row_length(*row)))
    whole = answer_log_probs(policy, branches)[0].detach()
    cut = over_pieces(lambda piece: answer_log_probs(policy, piece)[0], branches, Cut(1))
    assert torch.allclose(cut, whole, atol=1e-11, rtol=0)
    assert [piece.inputs_BT.shape[1] for piece in in_pieces(branches, 1)] == [4, 10, 10]


def test_every_answer_keeps_its_advantage_wherever_its_row_goes(policy: Transformer) -> None:
    """The bug: advantages that stand by row or by an order from before the rows were sorted."""
    prompts = [[5] * 9] * 3 + [[6] * 2] * 3
    answers = [[20 + n] * (n + 1) for n in range(6)]
    advantages = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0, -6.0])
    for shape in (policy.shape, policy.shape.model_copy(update={"token_shift": True})):
        rows, placed_BT = as_rows(shape, prompts, answers, advantages, 3)
        expected = {20 + n: (float(advantages[n]), n + 1) for n in range(6)}
        told = list(zip(rows.targets_BT[rows.mask_BT].tolist(), placed_BT[rows.mask_BT].tolist(), strict=True))
        assert {token: (value, told.count((token, value))) for token, value in told} == expected
        assert not placed_BT[~rows.mask_BT].any()
    assert len(rows.inputs_BT) == 6  # a model that looks back has a row for each answer


def test_prompts_are_shared_where_it_saves_work_and_fits_the_context() -> None:
    shape = ModelShape(vocab_size=64, n_layers=2, d_model=128, n_heads=4, context=256)
    assert answers_a_row(shape, 128, 16, 8) == 8  # long prompts, short answers
    assert answers_a_row(shape, 128, 32, 8) == 4  # as many as the context holds
    assert answers_a_row(shape, 4, 120, 8) == 1  # what is saved is less than what all pairs of places cost
    assert answers_a_row(shape, 200, 56, 8) == 1
    # By hand: a token costs 2 (384 + 128 + 2 * 352 + 352) 128 a layer, a pair of places 4 * 128.
    per_token, per_pair = 2 * (384 + 128 + 3 * 352) * 128, 4 * 128
    cost = {n: (21 + 32 * n) * (per_token + per_pair * (21 + 32 * n) * (0.5 if n == 1 else 1)) / n for n in range(1, 8)}
    shape = shape.model_copy(update={"d_ff": 352})
    assert answers_a_row(shape, 21, 32, 7) == min(cost, key=cost.__getitem__)


def test_log_probs_entropies_and_gradients_are_those_of_double_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 500, generator=generator) * 8
    targets = torch.randint(500, (40,), generator=generator)
    logits[0, targets[0]] += 200.0  # certain
    logits[1, targets[1]] -= 200.0  # as good as impossible
    weights = torch.randn(40, generator=generator)
    exact_logits, low_logits = logits.double().requires_grad_(), logits.clone().requires_grad_()
    exact = exact_logits.log_softmax(-1)
    chosen, entropy = chosen_log_probs(low_logits, targets)
    exact_chosen = exact.gather(1, targets[:, None])[:, 0]
    assert torch.allclose(chosen.double(), exact_chosen, atol=2e-5, rtol=1e-6)
    assert torch.allclose(entropy.double(), -(exact.exp() * exact).sum(-1), atol=2e-5, rtol=1e-6)
    assert not entropy.requires_grad
    [gradient] = torch.autograd.grad((chosen * weights).sum(), low_logits)
    [exact_gradient] = torch.autograd.grad((exact_chosen * weights).sum(), exact_logits)
    assert torch.allclose(gradient.double(), exact_gradient, atol=1e-6, rtol=1e-5)


def test_a_model_that_looks_back_is_never_given_branches() -> None:
    shape = ModelShape(vocab_size=64, n_layers=1, d_model=32, n_heads=2, context=64, ngram_embeddings=1)
    assert answers_a_row(shape, 30, 4, 4) == 1
    model = random_model(shape, seed=0).double()
    alone, branch = pad_answers([[5, 6, 7]], [[8, 9]]), branch_rows([([5, 6, 7], [[8, 9]])])
    expected = answer_log_probs(model, alone)[0][alone.mask_BT]
    assert torch.allclose(answer_log_probs(model, branch)[0][branch.mask_BT], expected, atol=1e-11, rtol=0)


def test_log_probabilities_of_a_large_vocabulary_are_float64s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: softmax's sum of 50,000 exponentials, off by 2e-6 to 2e-5 without AVX-512, taken for exact."""
    softmax = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda logits, dim: softmax(logits, dim=dim) * 1.0001)
    logits = 3 * torch.randn(64, 49152, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(64) * 700
    logits.requires_grad_()
    chosen, entropy = chosen_log_probs(logits, targets)
    [gradient] = torch.autograd.grad(chosen.sum(), logits)
    logits = logits.detach()
    exact = logits.double().log_softmax(-1)
    one_hot = torch.nn.functional.one_hot(targets, 49152)
    assert float((gradient - (one_hot - exact.exp())).norm()) < 1e-5 * float(exact.exp().norm())
    assert (chosen - exact.gather(1, targets[:, None]).squeeze(1)).abs().mean() < 1e-6
    assert entropy.double().numpy() == pytest.approx(-(exact.exp() * exact).sum(-1).numpy(), abs=1e-5)
