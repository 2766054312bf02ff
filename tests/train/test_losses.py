"""The chunked linear cross-entropy against the plain one: values, gradients, ragged chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from talaria.model.linear import product
from talaria.train import losses
from talaria.train.losses import linear_cross_entropy


def case(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    hidden_ND = torch.randn(n, 16, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    weight_VD = torch.randn(50, 16, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden_ND, weight_VD, torch.randint(50, (n,), generator=random)


@pytest.mark.parametrize("n", [1, 7, 8, 29])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_loss_and_gradients_are_those_of_cross_entropy_over_all_logits(
    n: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bugs: a last chunk left out, a chunk's gradient overwritten, the incoming gradient ignored."""
    monkeypatch.setattr(losses, "_CHUNK_LOGITS", 8 * 50)
    monkeypatch.setattr(losses, "_MIN_CHUNK", 1)
    hidden_ND, weight_VD, targets_N = case(n, dtype)
    plain = F.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="sum")
    expected = torch.autograd.grad(plain / 3, (hidden_ND, weight_VD))
    chunked = linear_cross_entropy(hidden_ND, weight_VD, targets_N)
    assert chunked.dtype == dtype
    torch.testing.assert_close(chunked, plain, rtol=tolerance, atol=tolerance)
    for gradient, reference in zip(torch.autograd.grad(chunked / 3, (hidden_ND, weight_VD)), expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=tolerance, atol=tolerance)


def test_the_number_of_logits_held_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_ND, weight_VD, targets_N = case(600, torch.float64)
    loss = linear_cross_entropy(hidden_ND, weight_VD, targets_N)
    monkeypatch.setattr(losses, "_MIN_CHUNK", 1000)
    torch.testing.assert_close(linear_cross_entropy(hidden_ND, weight_VD, targets_N), loss, rtol=1e-12, atol=0)


def test_huge_logits_stay_finite() -> None:
    """The bug: exp of a logit before its row's maximum is subtracted."""
    hidden_ND, weight_VD, targets_N = case(9, torch.float32)
    loss = linear_cross_entropy(hidden_ND * 1e4, weight_VD, targets_N)
    (gradient,) = torch.autograd.grad(loss, hidden_ND)
    assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("right", [True, False], ids=["sure and right", "sure and wrong"])
def test_a_sure_models_loss_is_neither_rounded_away_nor_infinite(right: bool) -> None:
    """The bugs: a large logit minus another's rounding, where the loss is small; log of a probability rounded to 0."""
    hidden_ND = torch.full((4, 1), 1000.0 if not right else 8.0)
    weight_VD = torch.tensor([[1.0], [0.0], [0.0]])
    targets_N = torch.full((4,), 0 if right else 1)
    loss = linear_cross_entropy(hidden_ND, weight_VD, targets_N)
    exact = F.cross_entropy((hidden_ND @ weight_VD.T).double(), targets_N, reduction="sum")
    # fp32 rounds at 6e-8 a probability near 1, which is all that four losses of 7e-4 each may be off by.
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=4 * 1.2e-7)


def test_bf16_states_with_an_fp32_table_are_summed_in_fp32() -> None:
    hidden_ND, weight_VD, targets_N = case(400, torch.float32)
    loss = linear_cross_entropy(hidden_ND.bfloat16(), weight_VD, targets_N)
    rounded = F.cross_entropy((hidden_ND.bfloat16() @ weight_VD.bfloat16().T).float(), targets_N, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, rounded, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, weight_VD)
    assert gradient.dtype == torch.float32


def test_a_second_backward_is_refused_not_wrong() -> None:
    hidden_ND, weight_VD, targets_N = case(5, torch.float32)
    loss = linear_cross_entropy(hidden_ND, weight_VD, targets_N) / 2
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_batches_of_many_lengths_multiply_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps what it made for every shape: fine-tuning once grew by megabytes a step."""
    rows = []

    def counted(x: Tensor, weight: Tensor) -> Tensor:
        rows.append(len(x))
        return product(x, weight)

    monkeypatch.setattr("talaria.train.losses.product", counted)
    for n in range(1, 300, 7):
        linear_cross_entropy(*case(n, torch.float32))
    assert len(rows) >= 43
    assert len(set(rows)) <= 5
