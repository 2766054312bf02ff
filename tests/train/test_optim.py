"""Muon against its definition and against torch's; the learning-rate schedule at its ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer
from talaria.train.muon import Muon, orthogonalised
from talaria.train.optim import make_optimizers, rate_share
from talaria.train.settings import OptimizerSettings

# Grouped queries: query has 32 rows, key and value 16 each.
SHAPE = ModelShape(vocab_size=64, n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48, context=16)
MUON = OptimizerSettings(name="muon", weight_decay=0.0)


def randn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def updates(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """What one step adds to each parameter, with one orthogonal direction a matrix."""
    model = Transformer(SHAPE, torch.Generator().manual_seed(1))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, gradient in gradients.items():
        model.get_parameter(name).grad = gradient
    make_optimizers(model, MUON, 1e-2)["muon"].step()
    return {name: model.get_parameter(name).detach() - before[name] for name in gradients}


@pytest.mark.parametrize(
    ("name", "rows"),
    [("blocks.0.attention.qkv.weight", (32, 16, 16)), ("blocks.1.feed_forward.up.weight", (48, 48))],
)
def test_a_part_moves_as_it_would_alone_however_large_the_others_gradients(name: str, rows: tuple[int, ...]) -> None:
    """The bug: query, key and value made orthogonal as one matrix, so the largest gradient steers all three."""
    gradient = randn(sum(rows), 32)
    scaled = torch.cat([part * 1000.0**i for i, part in enumerate(gradient.split(rows))])
    # Normalising first leaves a part's direction the same up to float32's rounding of a step of 1e-2 x 0.2 x sqrt(48).
    torch.testing.assert_close(updates({name: scaled})[name], updates({name: gradient})[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (16, 64)])
def test_singular_values_end_near_one_and_the_directions_stay(size: tuple[int, int]) -> None:
    """Against the singular value decomposition: U p(p(...(S))) V^T, p the quintic, in float64."""
    u, _, vh = torch.linalg.svd(randn(*size).double(), full_matrices=False)
    s = torch.linspace(1.0, 0.2, size[0], dtype=torch.float64)  # well conditioned
    matrix = u * s @ vh
    out = orthogonalised(matrix.float()[None], 5, torch.float32)[0].double()
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.65 and values.max() < 1.25
    p = s / s.norm()
    for _ in range(5):
        p = 3.4445 * p - 4.7750 * p**3 + 2.0315 * p**5
    # Five steps of float32 products of up to 64 terms, each magnifying earlier rounding at most 3.5 times.
    torch.testing.assert_close(out, u * p @ vh, rtol=0, atol=2e-4)


def test_matrices_of_a_stack_do_not_mix() -> None:
    stack = torch.stack([randn(8, 24, seed=seed) * 10.0**seed for seed in range(3)])
    together = orthogonalised(stack, 5, torch.float32)
    for matrix, expected in zip(stack, together, strict=True):
        torch.testing.assert_close(orthogonalised(matrix[None], 5, torch.float32)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 24), (24, 40), (32, 32)])
def test_an_unfused_matrix_moves_as_under_torchs_muon(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps with momentum, decay and rate against torch's, which iterates in bfloat16, and so must ours here.

    bfloat16 has 8 bits, and the two add products in another order, so single values differ by some of its units.
    """
    monkeypatch.setattr(
        "talaria.train.muon.orthogonalised", lambda m, steps, dtype: orthogonalised(m, steps, torch.bfloat16)
    )
    ours, theirs = (nn.Parameter(randn(*size)) for _ in range(2))
    our_muon = Muon([{"params": [ours]}], lr=1e-2, weight_decay=0.1, rows_of={})
    their_muon = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for i in range(10):
        ours.grad = randn(*size, seed=i)
        theirs.grad = ours.grad.clone()
        our_muon.step()
        their_muon.step()
    moved = (theirs - randn(*size)).norm()
    assert (ours - theirs).norm() < 2**-7 * moved
    assert our_muon.state[ours].keys() == their_muon.state[theirs].keys()
    torch.testing.assert_close(our_muon.state[ours]["momentum_buffer"], their_muon.state[theirs]["momentum_buffer"])


def test_a_parameter_without_a_gradient_and_one_of_zeros_stay() -> None:
    """Residual projections begin at zero, so at the first step the matrices before them have gradients of zero."""
    name = "blocks.0.attention.qkv.weight"
    assert not updates({name: torch.zeros(64, 32)})[name].any()


@pytest.mark.parametrize("schedule", ["cosine", "warmup-stable-decay"])
@pytest.mark.parametrize("steps", [10, 1000])
def test_the_last_step_runs_at_the_final_rate_and_the_first_after_warm_up_at_the_peak(
    schedule: str, steps: int
) -> None:
    settings = OptimizerSettings.model_validate({"schedule": schedule, "warmup_share": 0.2, "final_rate": 0.05})
    shares = [rate_share(step, steps, settings) for step in range(steps)]
    assert shares[-1] == 0.05
    warmup = steps // 5
    assert shares[0] == pytest.approx(1 / warmup)
    assert shares[warmup - 1] == 1.0 and shares[warmup] == pytest.approx(1.0)
    assert shares[warmup:] == sorted(shares[warmup:], reverse=True)
