"""Micro-batches side by side on a CPU's cores: the same step, the same bits each time, torch's threads as before."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from random_weights import random_model
from torch import Tensor

from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer
from talaria.tokens.batches import Batch
from talaria.train import cores
from talaria.train.cores import backward_each, cores_for, forward_each, rows_at_once, rows_each
from talaria.train.optim import make_optimizers
from talaria.train.settings import OptimizerSettings
from talaria.train.step import StepState, optimisation_step, split_rows, summed_loss

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


def test_what_is_computed_of_each_piece_comes_in_order_without_gradients_and_in_the_callers_dtype() -> None:
    """The bug: no_grad and autocast are a thread's own, and the pool's threads know of neither."""
    weight = torch.nn.Parameter(torch.eye(4))
    pieces = [torch.full((1, 4), float(i)) for i in range(5)]
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            found = forward_each(lambda piece: piece @ weight, pieces, 2)
        assert [float(x[0, 0]) for x in found] == [0, 1, 2, 3, 4]
        assert all(x.dtype == dtype and not x.requires_grad for x in found)
    assert torch.get_num_threads() == 2


def test_after_an_error_in_a_piece_none_of_the_others_is_still_at_work() -> None:
    """The bug: a piece that goes on computing when the caller has left the context it was to be computed in."""
    ended = []

    def compute(number: int) -> Tensor:
        if number == 0:
            raise ValueError("a piece")
        time.sleep(0.2)
        ended.append(number)
        return torch.zeros(1)

    with pytest.raises(ValueError, match="a piece"):
        forward_each(compute, [0, 1, 2], 2)
    assert sorted(ended) == [1, 2]


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


def test_micro_batches_are_cut_to_the_bytes_a_core_may_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: a core that takes half of any batch at once, and more memory and time a token the larger it is."""
    model = Transformer(SHAPE)
    assert rows_each(model, 64, 16, micro_rows=64, cores=2) == 32
    # What autograd keeps of a row by `ModelShape`'s account: floats a layer and position.
    per_layer = 4 * SHAPE.d_model + 2 * SHAPE.d_qkv + SHAPE.d_attention + 4 * SHAPE.d_ff
    row_bytes = 4 * 16 * (SHAPE.n_layers * per_layer + 2 * SHAPE.d_model)
    monkeypatch.setattr(cores, "MAX_ACTIVATION_BYTES", 8 * row_bytes)
    assert rows_each(model, 64, 16, micro_rows=64, cores=2) == 8
    assert rows_each(model, 18, 16, micro_rows=64, cores=2) == 5, "equal shares, not 8 and 1"
    assert rows_each(model, 64, 16, micro_rows=64, cores=1) == 8
    assert rows_each(model, 64, 16, micro_rows=4, cores=2) == 2, "never more in flight than micro_rows"
    assert rows_at_once(SHAPE, 64, 16) == 16, "two cores' rows: what a prediction of memory counts"
    assert rows_at_once(SHAPE, 9, 16) == 9
    monkeypatch.setattr(cores, "MAX_ACTIVATION_BYTES", 1)
    assert rows_each(model, 64, 16, micro_rows=64, cores=2) == 1
    monkeypatch.setattr(cores, "MAX_PARAMETERS", 1000)
    assert rows_each(model, 64, 16, micro_rows=64, cores=1) == 64, "a large model's rows are the settings' to choose"
    assert rows_at_once(SHAPE, 64, 16) == 64


def test_a_step_cut_to_a_cores_memory_is_the_whole_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: rows lost or counted twice where a batch is cut further than `micro_rows` asks."""

    def step(max_bytes: int) -> tuple[float, float, int]:
        monkeypatch.setattr(cores, "MAX_ACTIVATION_BYTES", max_bytes)
        seen: list[int] = []

        def counted(model: Transformer, batch: Batch, document_attention: bool) -> Tensor:
            seen.append(len(batch.inputs_BT))
            return summed_loss(model, batch, document_attention)

        monkeypatch.setattr("talaria.train.step.summed_loss", counted)
        model = random_model(SHAPE, seed=2)
        optimizers = make_optimizers(model, OptimizerSettings(), 1e-3)
        result = optimisation_step(
            model, optimizers, make_batch(7), StepState(), micro_rows=7, rate_share=1.0, max_grad_norm=1.0
        )
        assert sum(seen) == 7
        return result.loss, result.grad_norm, len(seen)

    whole, cut, again = step(1 << 30), step(1), step(1)
    assert (whole[2], cut[2]) == (2, 7)
    assert cut[:2] == pytest.approx(whole[:2], rel=1e-5)
    assert again == cut


def test_a_small_models_clipping_does_not_wait_for_a_second_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: on a busy machine, short shared operations after the backward cost more than the backward itself."""
    seen: list[int] = []
    clip = torch.nn.utils.clip_grad_norm_

    def counted(*arguments: object) -> Tensor:
        seen.append(torch.get_num_threads())
        return clip(*arguments)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", counted)
    model = random_model(SHAPE, seed=2)
    optimizers = make_optimizers(model, OptimizerSettings(name="muon"), 1e-3)
    stepping: dict[str, list[int]] = {"adamw": [], "muon": []}
    for name, optimizer in optimizers.items():
        optimizer.register_step_pre_hook(lambda *_, name=name: stepping[name].append(torch.get_num_threads()))
    for rows in (2, 1):  # a single row leaves the cores to torch
        optimisation_step(
            model, optimizers, make_batch(rows), StepState(), micro_rows=2, rate_share=1.0, max_grad_norm=1.0
        )
        assert torch.get_num_threads() == 2
    assert seen == [1, 2]
    assert stepping == {"adamw": [1, 2], "muon": [2, 2]}
