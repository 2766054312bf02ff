"""One step, however the batch is cut: micro-batches, packing, ranks. And what happens when it goes wrong."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from forked import forked
from random_weights import random_model

from talaria.errors import UserError
from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer
from talaria.tokens.batches import Batch
from talaria.train import parallel
from talaria.train.optim import make_optimizers
from talaria.train.settings import OptimizerSettings
from talaria.train.step import StepState, document_positions_and_mask, optimisation_step, split_rows, summed_loss

SHAPE = ModelShape(vocab_size=64, n_layers=2, d_model=32, n_heads=2, context=24)
# Gradients of a batch summed in another order differ by float32 rounding; one step of AdamW bounds a weight's change by
# the rate, so weights are compared at a small share of it.
RATE = 1e-3
TOLERANCE = 2e-5


def make_model() -> Transformer:
    return random_model(SHAPE, seed=1, deviation=0.05)


def make_batch(rows: int = 8) -> Batch:
    """Rows of two documents with ragged loss masks, so that micro-batches hold different counts of tokens."""
    random = torch.Generator().manual_seed(2)
    tokens = torch.randint(64, (rows, 25), generator=random)
    documents = (torch.arange(24) >= 10).long().expand(rows, -1)
    mask = torch.rand(rows, 24, generator=random) < torch.linspace(0.1, 0.9, rows)[:, None]
    return Batch(tokens[:, :-1], tokens[:, 1:], documents, mask)


def step(model: Transformer, batch: Batch, micro_rows: int, state: StepState | None = None, **options: bool) -> float:
    optimizers = make_optimizers(model, OptimizerSettings(), RATE)
    return optimisation_step(
        model,
        optimizers,
        batch,
        state or StepState(),
        micro_rows=micro_rows,
        rate_share=1.0,
        max_grad_norm=1.0,
        document_attention=True,
        **options,
    ).loss


def weights(model: Transformer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("micro_rows", [1, 3, 4])
def test_micro_batches_of_unequal_token_counts_equal_one_batch(micro_rows: int) -> None:
    """The bug: averaging each micro-batch's mean loss weighs tokens of short micro-batches more."""
    whole, cut = make_model(), make_model()
    loss = step(whole, make_batch(), 8)
    assert step(cut, make_batch(), micro_rows) == pytest.approx(loss, rel=1e-6)
    assert (weights(whole) - weights(cut)).abs().max() < TOLERANCE
    start = weights(make_model())
    assert (weights(whole) - start).abs().max() > 10 * TOLERANCE


def test_packed_documents_cost_what_they_cost_alone() -> None:
    model = make_model()
    batch = make_batch(4)
    batch = batch._replace(loss_mask_BT=torch.ones_like(batch.loss_mask_BT))
    packed = float(summed_loss(model, batch, document_attention=True).detach())
    alone = 0.0
    for row in range(4):
        for part in (slice(0, 10), slice(10, 24)):
            piece = Batch(*(tensor[row : row + 1, part] for tensor in batch))
            alone += float(summed_loss(model, piece, document_attention=True).detach())
    assert packed == pytest.approx(alone, rel=1e-5)
    leaking = float(summed_loss(model, batch, document_attention=False).detach())
    assert abs(leaking - alone) > 10 * 1e-5 * alone, "attention across documents must show"


def test_positions_and_mask_start_anew_at_each_document() -> None:
    positions, mask = document_positions_and_mask(torch.tensor([[0, 0, 1, 1, 1]]))
    assert positions is not None and mask is not None
    assert positions.tolist() == [[0, 1, 0, 1, 2]]
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
    assert document_positions_and_mask(torch.zeros(2, 5, dtype=torch.long)) == (None, None)


def test_a_row_without_loss_tokens_changes_nothing() -> None:
    """The bug: padding counted in the mean."""
    batch = make_batch(4)
    padded = Batch(*(torch.cat([tensor, tensor[:2]]) for tensor in batch))
    padded.loss_mask_BT[4:] = False
    one, other = make_model(), make_model()
    assert step(one, batch, 8) == pytest.approx(step(other, padded, 8), rel=1e-6)
    assert (weights(one) - weights(other)).abs().max() < TOLERANCE


def test_a_batch_without_any_loss_token_is_refused() -> None:
    batch = make_batch(2)
    batch.loss_mask_BT[:] = False
    with pytest.raises(UserError, match="assistant turns"):
        step(make_model(), batch, 2)


def test_a_step_that_is_not_finite_leaves_the_weights_and_is_reported() -> None:
    model = make_model()
    before = weights(model).clone()
    optimizers = make_optimizers(model, OptimizerSettings(), RATE)
    state = StepState()
    options = {"micro_rows": 8, "rate_share": 1.0, "max_grad_norm": 1.0}
    final_norm = model.final_norm.weight.detach().clone()
    with torch.no_grad():
        model.final_norm.weight.fill_(float("inf"))
    result = optimisation_step(model, optimizers, make_batch(), state, **options)
    assert result.skipped
    with torch.no_grad():
        model.final_norm.weight.copy_(final_norm)
    assert torch.equal(weights(model), before)
    assert not optimizers["adamw"].state, "a skipped step must not enter the optimizer's moments"
    assert not optimisation_step(model, optimizers, make_batch(), state, **options).skipped
    assert not torch.equal(weights(model), before)


def test_a_run_that_never_becomes_finite_stops_with_advice() -> None:
    model = make_model()
    with torch.no_grad():
        model.final_norm.weight.fill_(float("nan"))
    state = StepState()
    with pytest.raises(UserError, match="learning_rate"):
        for _ in range(20):
            step(model, make_batch(2), 2, state)


def test_a_loss_spike_is_reported_and_ordinary_noise_is_not() -> None:
    model, state = make_model(), StepState()
    optimizers = make_optimizers(model, OptimizerSettings(), 1e-5)
    random = torch.Generator().manual_seed(3)
    spikes = []
    for i in range(40):
        tokens = torch.randint(8, (4, 25), generator=random)
        if i == 35:
            with torch.no_grad():
                model.embed.weight.mul_(30)
        batch = Batch(
            tokens[:, :-1], tokens[:, 1:], torch.zeros(4, 24, dtype=torch.long), torch.ones(4, 24, dtype=torch.bool)
        )
        result = optimisation_step(model, optimizers, batch, state, micro_rows=4, rate_share=1.0, max_grad_norm=1.0)
        if result.spike:
            spikes.append(i)
    assert spikes[:1] == [35]


def test_the_noise_scale_estimate_matches_its_definition() -> None:
    """tr(covariance) / |gradient|^2 of per-row gradients, computed directly, against the running two-batch estimate."""
    model = make_model()
    random = torch.Generator().manual_seed(4)
    # A gradient that is mostly signal: the rows share their first half and differ in the second.
    common = torch.randint(64, (1, 25), generator=random)
    gradients = []
    for _ in range(256):
        batch = _noisy_row(common, random)
        model.zero_grad()
        (summed_loss(model, batch, False) / 24).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone())
    rows = torch.stack(gradients).double()
    mean = rows.mean(0)
    trace_tokens = float(rows.var(0).sum()) * 24
    expected = trace_tokens / float((mean**2).sum())

    optimizers = make_optimizers(model, OptimizerSettings(), 1e-12)
    state, estimates = StepState(), []
    for _ in range(120):
        batch = Batch(*(torch.cat(t) for t in zip(*(_noisy_row(common, random) for _ in range(8)), strict=True)))
        result = optimisation_step(
            model, optimizers, batch, state, micro_rows=1, rate_share=1.0, max_grad_norm=1e9, measure_noise=True
        )
        if result.noise_scale is not None:
            estimates.append(result.noise_scale)
    assert len(estimates) > 60
    median = sorted(estimates)[len(estimates) // 2]
    assert 0.5 * expected < median < 2 * expected


def _noisy_row(common: torch.Tensor, random: torch.Generator) -> Batch:
    tokens = common.clone()
    tokens[:, 12:] = torch.randint(64, (1, 13), generator=random)
    shape = (1, 24)
    return Batch(
        tokens[:, :-1], tokens[:, 1:], torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.bool)
    )


def test_muon_takes_the_hidden_matrices_and_no_table() -> None:
    model = make_model()
    optimizers = make_optimizers(model, OptimizerSettings(name="muon"), RATE)
    names = {p: name for name, p in model.named_parameters()}
    by_muon = {names[p] for group in optimizers["muon"].param_groups for p in group["params"]}
    by_adamw = {names[p] for group in optimizers["adamw"].param_groups for p in group["params"]}
    assert by_muon | by_adamw == set(names.values()) and not by_muon & by_adamw
    assert "embed.weight" in by_adamw
    assert all(name.startswith("blocks.") for name in by_muon) and len(by_muon) == 4 * SHAPE.n_layers


def _one_rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    parallel.start()
    model = make_model()
    mine = split_rows(make_batch(), 4)[rank]
    loss = step(model, mine, 2)
    torch.save({"loss": loss, "weights": weights(model)}, Path(folder) / f"{rank}.pt")


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forked()
    mp.start_processes(_one_rank, args=(port, str(tmp_path)), nprocs=2, start_method="forkserver")
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    model = make_model()
    loss = step(model, make_batch(), 8)
    assert ranks[0]["loss"] == pytest.approx(loss, rel=1e-6)
    assert (weights(model) - ranks[0]["weights"]).abs().max() < TOLERANCE


def test_masked_tokens_neither_count_nor_weigh() -> None:
    model, batch = make_model(), make_batch()
    logits_NV, targets_N = model(batch.inputs_BT)[batch.loss_mask_BT], batch.targets_BT[batch.loss_mask_BT]
    expected = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum")
    torch.testing.assert_close(summed_loss(model, batch, document_attention=False), expected)
    result = optimisation_step(
        model,
        make_optimizers(model, OptimizerSettings(), RATE),
        batch,
        StepState(),
        micro_rows=8,
        rate_share=1.0,
        max_grad_norm=1.0,
    )
    assert result.n_tokens == int(batch.loss_mask_BT.sum()) < batch.inputs_BT.numel()
