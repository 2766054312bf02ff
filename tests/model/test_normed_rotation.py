from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from random_weights import random_model

from talaria.model import attention
from talaria.model.attention import rotate
from talaria.model.normed_rotation import normed_and_turned
from talaria.model.shape import ModelShape


def angles() -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.randn(2, 3, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.cat([angle.cos()] * 2, dim=-1), torch.cat([-angle.sin(), angle.sin()], dim=-1)


def test_it_is_the_norm_and_the_rotation_with_their_gradients() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 8, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 8, generator=random, dtype=torch.float64, requires_grad=True)
    g = torch.randn(2, 3, 5, 8, generator=random, dtype=torch.float64)
    cos, sin = angles()
    apart = rotate(torch.nn.functional.rms_norm(x, (8,), None, 1e-2) * weight, cos, sin)
    together = normed_and_turned(x, weight, 1e-2, cos, sin)
    torch.testing.assert_close(together, apart)
    for got, want in zip(
        torch.autograd.grad(together, (x, weight), g), torch.autograd.grad(apart, (x, weight), g), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_bf16_queries_are_computed_in_the_weights_precision() -> None:
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    cos, sin = (x.float() for x in angles())
    weight = torch.full((5, 8), 1.1)
    low = normed_and_turned(x, weight, 1e-6, cos, sin)
    assert low.dtype == torch.bfloat16
    # Rounded once, at the end.
    assert torch.equal(low, normed_and_turned(x.float(), weight, 1e-6, cos, sin).bfloat16())


def test_training_takes_it_and_gives_the_logits_of_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    together = Mock(side_effect=normed_and_turned)
    monkeypatch.setattr(attention, "normed_and_turned", together)
    shape = ModelShape(vocab_size=64, n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, context=24, qk_norm=True)
    model = random_model(shape, seed=1)
    tokens = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(2))
    training = model(tokens)
    assert together.call_count == shape.n_layers
    with torch.no_grad():
        torch.testing.assert_close(training, model(tokens))
    assert together.call_count == shape.n_layers
