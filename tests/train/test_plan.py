"""What the depth dial derives of a training run: tokens, batch, rate; and that an explicit value wins."""

from __future__ import annotations

import pytest

from talaria.model.shape import shape_from_depth
from talaria.train.settings import OptimizerSettings, PretrainSettings, plan_pretraining

SHAPES = {depth: shape_from_depth(depth, vocab_size=8192, context=256) for depth in (4, 8, 16)}


def test_tokens_are_twenty_a_parameter_unless_they_or_epochs_are_given() -> None:
    shape = SHAPES[8]
    for settings, tokens in (
        (PretrainSettings(), 20 * shape.n_params()),
        (PretrainSettings(tokens_per_parameter=5), 5 * shape.n_params()),
        (PretrainSettings(epochs=2.5), 2.5e7),
        (PretrainSettings(epochs=2.5, tokens=3_000_000), 3_000_000),
    ):
        plan = plan_pretraining(settings, shape, data_tokens=10_000_000)
        assert abs(plan.tokens - tokens) <= plan.batch_tokens / 2, settings


def test_batch_and_rate_follow_the_runs_compute() -> None:
    """DeepSeek LLM (Bi et al. 2024), section 3.1: C^0.3271 tokens a batch, C^-0.1250 of rate."""
    plans = {depth: plan_pretraining(PretrainSettings(), shape, 1) for depth, shape in SHAPES.items()}
    for depth, plan in plans.items():
        compute = SHAPES[depth].flops_per_token(256) * 20 * SHAPES[depth].n_params()
        assert plan.batch_tokens == pytest.approx(0.2920 * compute**0.3271, abs=128)
        assert plan.learning_rate == pytest.approx(0.3118 * compute**-0.1250)
    assert plans[4].rows < plans[8].rows < plans[16].rows
    assert plans[4].learning_rate > plans[8].learning_rate > plans[16].learning_rate


def test_a_short_run_still_has_two_hundred_steps() -> None:
    plan = plan_pretraining(PretrainSettings(tokens=200 * 512), SHAPES[16], 1)
    assert (plan.batch_tokens, plan.steps) == (512, 200)


def test_an_explicit_dial_wins_and_the_rest_follows() -> None:
    settings = PretrainSettings(
        tokens=1_000_000,
        context=128,
        batch_tokens=4096,
        micro_batch_tokens=1024,
        optimizer=OptimizerSettings(learning_rate=1e-3),
    )
    plan = plan_pretraining(settings, SHAPES[4], 1)
    assert (plan.context, plan.rows, plan.micro_rows, plan.steps) == (128, 32, 8, 244)
    assert plan.learning_rate == 1e-3
    longer = plan_pretraining(PretrainSettings(context=1024), SHAPES[4], 1)
    assert longer.context == 256, "no longer than the model's own"
