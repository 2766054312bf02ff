from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from random_weights import random_model
from torch import Tensor

from talaria.model import attention_bf16
from talaria.model.attention_bf16 import bf16_attention
from talaria.model.shape import ModelShape
from talaria.train.step import document_positions_and_mask


def case(T: int, strided: bool = True) -> list[Tensor]:
    """Queries, keys, values and a gradient (2, 3, T, 8), laid out as the trunk has them."""
    random = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, T, 3, 8, generator=random, dtype=torch.float64).transpose(1, 2) for _ in range(4)]
    return [x if strided else x.contiguous() for x in tensors]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() - b.detach()).norm() / b.detach().norm())


@pytest.mark.parametrize("n_keys", [3, 1])
@pytest.mark.parametrize("strided", [True, False])
@pytest.mark.parametrize("documents", [True, False])
def test_answer_and_gradients_are_those_of_double_precision(documents: bool, strided: bool, n_keys: int) -> None:
    """A bf16 number has 8 bits: an error of 2^-9 on average in each of a few roundings."""
    T = 24
    *inputs, g = case(T, strided)
    mask = None
    if documents:
        mask = document_positions_and_mask(torch.tensor([[0] * 5 + [1] * 19, [0] * 23 + [1]]))[1]
    inputs[1:] = [x[:, :n_keys] for x in inputs[1:]]
    exact_inputs = [x.detach().requires_grad_() for x in inputs]
    exact = F.scaled_dot_product_attention(*exact_inputs, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, g)
    low_inputs = [x.detach().float().requires_grad_() for x in inputs]
    low = bf16_attention(low_inputs[0], low_inputs[1], low_inputs[2], mask)
    assert low.dtype == torch.bfloat16
    low_gradients = torch.autograd.grad(low, low_inputs, g.bfloat16())
    for got, want in zip((low, *low_gradients), (exact, *exact_gradients), strict=True):
        assert relative(got, want) < 0.01


def test_no_query_sees_a_later_key_or_another_document() -> None:
    *inputs, _ = case(16)
    mask = document_positions_and_mask(torch.tensor([[0] * 6 + [1] * 10] * 2))[1]
    values = inputs[2].float()
    queries, keys = (10 * x.float() for x in inputs[:2])
    before = bf16_attention(queries, keys, values, mask)
    changed = values.clone()
    changed[:, :, 12] += 100.0
    changed[:, :, 3] += 100.0
    moved = (bf16_attention(queries, keys, changed, mask) != before).any(-1).any(1)
    assert moved[:, [4, 5, 13, 15]].any()
    assert not moved[:, [0, 1, 2, 6, 7, 11]].any()


def test_training_takes_it_and_everything_else_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Tensor) -> Tensor:
        calls.append(arguments[0].shape[2])
        return bf16_attention(*arguments)

    monkeypatch.setattr("talaria.model.attention.bf16_attention", counted)
    monkeypatch.setattr(attention_bf16, "MAX_POSITIONS", 32)
    model = random_model(ModelShape(vocab_size=64, n_layers=2, d_model=32, n_heads=2, context=64), seed=0)
    tokens = torch.randint(64, (2, 32), generator=torch.Generator().manual_seed(0))
    plain = model(tokens)
    assert not calls
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens)
        assert calls == [32, 32]
        with torch.no_grad():
            assert torch.equal(model(tokens), logits)
        assert calls == [32] * 4
        model(tokens.repeat(1, 2))
    assert calls == [32] * 4
    assert 0 < relative(logits, plain.double()) < 0.02
