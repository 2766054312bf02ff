"""Smoothing keeps what a model computes and makes its activations easier to round."""

import copy

import pytest
import torch
from random_weights import random_model

from talaria.model.int8_products import int8_products_are_exact
from talaria.model.probe import seen_inputs
from talaria.model.quantized import quantize
from talaria.model.shape import ModelShape
from talaria.model.smoothing import smooth_blocks, smooth_output

VARIANTS = {
    "llama": {"n_kv_heads": 2, "qk_norm": True},
    "gpt2": {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "bias": True},
    "biased swiglu": {"norm": "layernorm", "bias": True},
    "shifted": {"token_shift": True, "ngram_embeddings": 2},
}
TOKENS = torch.randint(300, (4, 40), generator=torch.Generator().manual_seed(1))


def model_of(variant):
    """Random, but for a few columns that every norm makes large, as trained models have them."""
    model = random_model(
        ModelShape(vocab_size=300, n_layers=2, d_model=64, n_heads=4, **VARIANTS[variant]), deviation=0.1
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_norm.weight") and len(parameter) == 64:
                parameter[[3, 40]] *= 60
            if name.endswith("up.weight"):
                parameter[[-1, -7]] *= 20
    return model.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_computes_what_it_did(variant):
    model = model_of(variant).double()
    smoothed, inputs = copy.deepcopy(model), seen_inputs(model)
    smooth_blocks(smoothed, inputs)
    factors = smooth_output(smoothed, inputs)
    with torch.no_grad():
        logits = smoothed.hidden(TOKENS) @ (smoothed.head_weight() * factors).T
        torch.testing.assert_close(logits, model(TOKENS), rtol=1e-9, atol=1e-9)
    after = seen_inputs(smoothed)
    for name in after:
        moved = not torch.equal(after[name].largest, inputs[name].largest)
        assert moved != (name.endswith("out") or (variant == "gpt2" and name.endswith("down")))


@pytest.mark.skipif(not int8_products_are_exact(), reason="needs a processor with VNNI")
@pytest.mark.parametrize("variant", VARIANTS)
def test_products_of_bytes_come_nearer(variant, monkeypatch):
    """Mean squared error against fp32 of what follows a norm, with the smoothing and without."""
    hidden = torch.randn(200, 64, generator=torch.Generator().manual_seed(2))

    def products(model):
        block = model.blocks[0]
        with torch.no_grad():
            qkv = block.attention.qkv(block.attention_norm(hidden))
            logits = model.head(model.final_norm(hidden))
            return {"qkv": qkv, "logits": logits, "feed forward": block.feed_forward(block.feed_forward_norm(hidden))}

    exact, smoothed = products(model_of(variant)), products(quantize(model_of(variant), "int8"))
    monkeypatch.setattr("talaria.model.quantized.smooth_blocks", lambda model, inputs: None)
    monkeypatch.setattr("talaria.model.quantized.smooth_output", lambda model, inputs: torch.ones(64))
    plain = products(quantize(model_of(variant), "int8"))
    ratio = {
        name: ((smoothed[name] - y).square().mean() / (plain[name] - y).square().mean()) for name, y in exact.items()
    }
    assert max(ratio.values()) < 0.7, ratio
