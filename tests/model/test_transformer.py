"""The trunk's promises: causality, cache, masks, positions, reproducible weights; for every variant."""

from typing import Any

import pytest
import torch
from random_weights import random_model
from torch import Tensor

from talaria.errors import UserError
from talaria.model.shape import ModelShape, shape_from_depth
from talaria.model.transformer import Transformer

LLAMA: dict[str, Any] = {"qk_norm": False}
GPT2 = {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "bias": True, "qk_norm": False}
VARIANTS = {
    "llama": LLAMA,
    "llama, grouped queries, untied": LLAMA | {"n_heads": 4, "n_kv_heads": 2, "tie_embeddings": False},
    "one key-value head, wide heads": LLAMA | {"n_heads": 4, "n_kv_heads": 1, "d_head": 48},
    "gpt2": GPT2,
    "gpt2 with rope": GPT2 | {"positions": "rope"},
    "layernorm without bias": {"norm": "layernorm"},
    "qk norm": {"qk_norm": True, "n_heads": 4, "n_kv_heads": 2},
    "token shift": {"token_shift": True},
    "ngram": {"ngram_embeddings": 2},
    "everything": {"token_shift": True, "ngram_embeddings": 3, "qk_norm": True, "bias": True},
}


class ListCache:
    """The plainest cache that keeps the contract."""

    def __init__(self) -> None:
        self.stored: dict[Any, Tensor] = {}

    def update(self, layer: int, keys_BKTE: Tensor, values_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        for name, new in (("keys", keys_BKTE), ("values", values_BKTE)):
            old = self.stored.get((name, layer))
            self.stored[name, layer] = new if old is None else torch.cat([old, new], dim=2)
        return self.stored["keys", layer], self.stored["values", layer]

    def carry(self, name: str, values: Tensor, n: int) -> Tensor:
        before = self.stored.get(name)
        if before is None:
            before = values.new_zeros(values.shape[0], n, *values.shape[2:])
        self.stored[name] = torch.cat([before, values], dim=1)[:, -n:]
        return before


def build(variant: str, **explicit: Any) -> Transformer:
    """A small model with weights large enough for every part to matter."""
    shape = shape_from_depth(2, vocab_size=61, **({"context": 40} | VARIANTS[variant] | explicit))
    return random_model(shape, seed=1).double()


def draw_tokens(batch: int, length: int) -> Tensor:
    return torch.randint(61, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_logit_sees_a_later_token(variant: str) -> None:
    model, tokens = build(variant), draw_tokens(2, 20)
    changed = tokens.clone()
    changed[:, 11:] = (changed[:, 11:] + 1) % 61
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :11], after[:, :11])
    assert (before[:, 11:] != after[:, 11:]).any(dim=-1).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 1, 4, 1], [12]], ids=["one by one", "chunks", "whole"])
def test_decoding_with_a_cache_equals_the_whole_pass(variant: str, chunks: list[int]) -> None:
    model, tokens = build(variant), draw_tokens(3, 12)
    cache, at, pieces = ListCache(), 0, []
    with torch.no_grad():
        whole = model(tokens)
        for chunk in chunks:
            positions = torch.arange(at, at + chunk).expand(3, -1)
            pieces.append(model(tokens[:, at : at + chunk], positions, cache=cache))
            at += chunk
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_documents_do_not_see_each_other(variant: str) -> None:
    """Two documents in one row, with a mask and restarting positions, equal each on its own."""
    model, tokens = build(variant), draw_tokens(1, 15)
    lengths = (6, 9)
    document = torch.tensor([0] * 6 + [1] * 9)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    mask = (document[:, None] == document[None, :]).tril()[None, None]
    with torch.no_grad():
        packed = model(tokens, positions, mask)
        alone = [model(part) for part in tokens.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_given_positions_equal_the_default_ones(variant: str) -> None:
    model, tokens = build(variant), draw_tokens(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, torch.arange(9).expand(2, -1)), model(tokens))


def test_a_mask_may_open_the_future() -> None:
    """A prefix mask lets the first tokens see each other in both directions."""
    model, tokens = build("llama"), draw_tokens(1, 8)
    mask = torch.ones(8, 8, dtype=torch.bool).tril()
    mask[:4, :4] = True
    changed = tokens.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 61
    with torch.no_grad():
        prefix, causal = model(tokens, mask=mask), model(tokens)
        assert not torch.allclose(prefix[0, 0], causal[0, 0])
        assert not torch.allclose(model(changed, mask=mask)[0, 0], prefix[0, 0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter(variant: str) -> None:
    model = build(variant)
    model(draw_tokens(2, 16)).square().mean().backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert not without


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before() -> None:
    shape = shape_from_depth(2, vocab_size=50)
    first = Transformer(shape, torch.Generator().manual_seed(7)).state_dict()
    torch.rand(3)
    second = Transformer(shape, torch.Generator().manual_seed(7)).state_dict()
    other = Transformer(shape, torch.Generator().manual_seed(8)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


@pytest.mark.parametrize("depth", [2, 8])
def test_initial_deviations_follow_the_width(depth: int) -> None:
    """The bug: one deviation at every width, so that narrow models begin nearly linear and wide ones saturated."""
    shape = shape_from_depth(depth, vocab_size=1000, tie_embeddings=False, **GPT2)
    model = Transformer(shape, torch.Generator().manual_seed(0))
    block = model.blocks[depth - 1]
    for fused in (block.attention.qkv.weight, block.feed_forward.up.weight):
        assert fused.std().item() == pytest.approx((64 * depth) ** -0.5, rel=0.02)
    assert model.embed.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.unembed.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.position_embed.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not block.attention.qkv.bias.any()
    assert (block.attention_norm.weight == 1).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_block_begins_as_the_identity_and_still_learns(variant: str) -> None:
    """Residual projections of zero: what enters a block leaves it, and their own gradients are not zero."""
    shape = shape_from_depth(2, vocab_size=61, context=40, **VARIANTS[variant])
    model, tokens = Transformer(shape, torch.Generator().manual_seed(0)), draw_tokens(1, 8)
    one_layer = Transformer(shape.model_copy(update={"n_layers": 1}), device="meta")
    state = {name: value for name, value in model.state_dict().items() if name in one_layer.state_dict()}
    one_layer.load_state_dict(state, assign=True)
    logits = model(tokens)
    assert torch.equal(logits, one_layer(tokens))
    logits.square().sum().backward()
    for block in model.blocks:
        assert block.attention.out.weight.grad.any() and block.feed_forward.down.weight.grad.any()


def test_bf16_weights_keep_exact_angles_and_give_fp32_logits() -> None:
    """A rotary table that is cast with the weights puts far positions several turns off."""
    model, tokens = build("llama", context=4096).bfloat16(), draw_tokens(1, 16)
    far = torch.arange(4001, 4017)[None]
    with torch.no_grad():
        here, moved, scattered = (model(tokens, positions) for positions in (None, far, far.flip(1)))
    assert here.dtype == torch.float32
    # RoPE is relative: the same tokens far away differ by rounding, in another order by much more.
    assert (here - moved).square().mean() < 0.1 * (here - scattered).square().mean()


def test_nothing_random_happens_in_training_mode() -> None:
    model, tokens = build("gpt2"), draw_tokens(2, 8)
    assert torch.equal(model.train()(tokens), model.eval()(tokens))


def test_a_sequence_longer_than_the_context_is_refused() -> None:
    with pytest.raises(UserError, match="41 tokens is longer than the model's context of 40"):
        build("llama")(draw_tokens(1, 41))


def test_hidden_and_head_make_forward() -> None:
    model, tokens = build("llama, grouped queries, untied"), draw_tokens(2, 8)
    hidden = model.hidden(tokens)
    assert hidden.shape == (2, 8, model.shape.d_model)
    assert torch.equal(model.head(hidden), model(tokens))


def test_a_meta_model_allocates_nothing_and_can_be_filled() -> None:
    shape = shape_from_depth(2, vocab_size=50)
    model = Transformer(shape, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    model.reset_parameters(torch.Generator().manual_seed(1))
    expected = Transformer(shape, torch.Generator().manual_seed(1))
    state = expected.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_model_that_is_to_be_filled_draws_no_normal_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: values of "meta" tables were drawn, for which torch loads its compiler: seconds before every chat."""
    monkeypatch.setattr("torch.nn.init.normal_", lambda *given, **named: pytest.fail("a value was drawn"))
    shape = shape_from_depth(2, vocab_size=50, positions="learned", ngram_embeddings=1, tie_embeddings=True)
    assert all(parameter.requires_grad for parameter in Transformer(shape, device="meta").parameters())


def test_shapes_are_kept_with_the_model() -> None:
    shape = ModelShape(vocab_size=9, n_layers=1, d_model=8, n_heads=2)
    assert Transformer(shape).shape is shape
