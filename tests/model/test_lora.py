"""LoRA: begins as the model it changes, trains nothing else, and merges into plain weights."""

from __future__ import annotations

import torch
from random_weights import random_model

from talaria.model.lora import LoraLinear, add_lora, merge_lora, without_lora
from talaria.model.shape import shape_from_depth
from talaria.model.transformer import Transformer

SHAPE = shape_from_depth(2, 60, 32, d_model=32, n_heads=2)
TOKENS = torch.randint(0, 60, (3, 11), generator=torch.Generator().manual_seed(0))


def with_lora() -> Transformer:
    model = random_model(SHAPE).double()
    add_lora(model, rank=4, alpha=8.0, generator=torch.Generator().manual_seed(1))
    return model


def moved(model: Transformer) -> Transformer:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.1)
    return model


@torch.no_grad()
def test_it_begins_as_the_model_it_changes_bit_for_bit() -> None:
    assert torch.equal(with_lora()(TOKENS), random_model(SHAPE).double()(TOKENS))


def test_only_the_differences_are_trained() -> None:
    model = with_lora()
    model(TOKENS).square().sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if name.endswith(("qkv.down", "qkv.up", "out.down", "out.up", "up.down", "up.up", "down.down", "down.up"))}  # fmt: skip  # noqa: E501
    assert len(trained) == 2 * 4 * SHAPE.n_layers
    n_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert n_trained < 0.5 * SHAPE.n_params()


@torch.no_grad()
def test_merged_weights_compute_the_same_and_have_the_plain_names() -> None:
    model = moved(with_lora())
    changed = model(TOKENS)
    assert float((changed - random_model(SHAPE).double()(TOKENS)).abs().max()) > 1e-3
    merge_lora(model)
    assert not any(isinstance(module, LoraLinear) for module in model.modules())
    assert torch.allclose(model(TOKENS), changed, atol=1e-9, rtol=0)
    plain = random_model(SHAPE).double()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, weights in plain.state_dict().items():  # what is not a matrix of a block is as it was
        if not name.endswith(("qkv.weight", "out.weight", "up.weight", "down.weight")):
            assert torch.equal(weights, model.state_dict()[name])


@torch.no_grad()
def test_without_lora_the_reference_is_the_model_as_it_was() -> None:
    model = moved(with_lora())
    changed = model(TOKENS)
    with without_lora(model):
        assert torch.equal(model(TOKENS), random_model(SHAPE).double()(TOKENS))
    assert torch.equal(model(TOKENS), changed)
