"""Micro-batches side by side on a CPU's cores: the same step, the same bits each time, torch's threads as before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from random_weights import random_model
from torch import Tensor

from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer
from talaria.tokens.batches import Batch
from talaria.train import cores
from talaria.train.cores import backward_each, cores_for
from talaria.train.step import split_rows, summed_loss

SHAPE = ModelShape(vocab_size=64, n_layers=2, d_model=32, n_heads=2, context=16)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def make_batch(rows: int) -> Batch:
    tokens_BT = torch.randint(64, (rows, 17), generator=torch.Generator().manual_seed(0))
    mask_BT = torch.rand(rows, 16, generator=torch.Generator().manual_seed(1)) < 0.7
    return Batch(tokens_BT[:, :-1], tokens_BT[:, 1:], torch.zeros(rows, 16, dtype=torch.int64), mask_BT)


def gradients(micro_rows: int, n_cores: int) -> tuple[Tensor, list[float]]:
    model = random_model(SHAPE, seed=2)
    micro_batches = split_rows(make_batch(6), micro_rows)
    losses = list(backward_each(lambda micro: summed_loss(model, micro, False), micro_batches, model, 10.0, n_cores))
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), losses


@pytest.mark.parametrize("micro_rows", [1, 2, 3])
def test_two_cores_sum_what_one_sums(micro_rows: int) -> None:
    """The bug: a micro-batch's gradient lost, or counted twice, where two cores add to one tensor."""
    one, one_losses = gradients(micro_rows, 1)
    two, two_losses = gradients(micro_rows, 2)
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)
    assert two_losses == pytest.approx(one_losses, rel=1e-6)


def test_the_order_of_the_sum_does_not_depend_on_which_core_is_first() -> None:
    first, _ = gradients(1, 2)
    for _ in range(5):
        assert torch.equal(gradients(1, 2)[0], first)


def test_an_error_in_a_micro_batch_is_raised_and_torch_gets_its_threads_back() -> None:
    def fail(micro: Batch) -> Tensor:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        list(backward_each(fail, split_rows(make_batch(4), 2), Transformer(SHAPE), 1.0, 2))
    assert torch.get_num_threads() == 2


def test_large_models_and_single_rows_leave_the_cores_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(SHAPE)
    assert cores_for(model, rows=2) == 2
    assert cores_for(model, rows=1) == 1
    monkeypatch.setattr(cores, "MAX_PARAMETERS", 1000)
    assert cores_for(model, rows=2) == 1
