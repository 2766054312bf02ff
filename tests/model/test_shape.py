"""The arithmetic of a shape against the built module and against hand-counted models."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from talaria.errors import UsageError
from talaria.model.settings import ModelSettings, resolve_shape
from talaria.model.shape import Llama3RopeScaling, ModelShape, shape_from_depth

GPT2 = {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "bias": True}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"tie_embeddings": False, "n_kv_heads": 2},
    {"bias": True, "d_head": 16},
    GPT2,
    GPT2 | {"tie_embeddings": False, "bias": False},
    {"qk_norm": True, "token_shift": True, "ngram_embeddings": 2},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_n_params_is_the_built_modules(variant: dict[str, Any]) -> None:
    from talaria.model.transformer import Transformer

    shape = shape_from_depth(3, vocab_size=97, context=48, **variant)
    model = Transformer(shape, device="meta")
    assert shape.n_params() == sum(parameter.numel() for parameter in model.parameters())
    tables = [name for name, _ in model.named_parameters() if name.split(".")[0] in TABLES]
    in_tables = sum(dict(model.named_parameters())[name].numel() for name in tables)
    assert shape.n_params_non_embedding() == shape.n_params() - in_tables


TABLES = ("embed", "unembed", "position_embed", "ngram_embeds")


def test_published_models_have_their_published_sizes() -> None:
    gpt2 = ModelShape(vocab_size=50257, n_layers=12, d_model=768, n_heads=12, context=1024, **GPT2)
    assert gpt2.n_params() == 124_439_808
    smollm2 = ModelShape(vocab_size=49152, n_layers=30, d_model=576, n_heads=9, n_kv_heads=3, d_ff=1536)
    assert smollm2.n_params() == 134_515_008


def test_flops_match_torchs_counter() -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from talaria.model.transformer import Transformer

    shape = shape_from_depth(2, vocab_size=128, context=32, n_heads=2)
    model = Transformer(shape)
    tokens = torch.zeros(2, 32, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        logits = model(tokens)
    assert forward.get_total_flops() == shape.forward_flops_per_token(32) * tokens.numel()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    total = forward.get_total_flops() + backward.get_total_flops()
    assert total == shape.flops_per_token(32) * tokens.numel()


def test_flops_grow_with_the_window_and_default_to_the_context() -> None:
    shape = shape_from_depth(4, vocab_size=256, context=128)
    assert shape.flops_per_token() == shape.flops_per_token(128)
    slope = shape.flops_per_token(256) - shape.flops_per_token(128)
    assert slope == 12 * shape.n_layers * shape.d_attention * 128


def test_kv_cache_bytes_count_key_value_heads_only() -> None:
    shape = shape_from_depth(4, vocab_size=256, context=64, n_heads=8, n_kv_heads=2)
    assert shape.kv_cache_bytes(3, dtype="bfloat16") == 2 * 4 * 2 * 32 * 3 * 64 * 2


def test_training_memory_counts_optimizer_state_and_batch() -> None:
    shape = shape_from_depth(4, vocab_size=256, context=64)
    sgd, adamw = (shape.training_memory_bytes(1, optimizer=name) for name in ("sgd", "adamw"))
    assert adamw - sgd == 8 * shape.n_params()
    assert sgd < shape.training_memory_bytes(1, optimizer="muon") < adamw
    one, two, nine = (shape.training_memory_bytes(batch) for batch in (1, 2, 9))
    assert nine - one == pytest.approx(8 * (two - one))
    with pytest.raises(ValueError, match="adam"):
        shape.training_memory_bytes(1, optimizer="adam")


@pytest.mark.parametrize("depth", range(1, 33))
def test_every_depth_gives_whole_heads(depth: int) -> None:
    shape = shape_from_depth(depth, vocab_size=1000)
    assert shape.n_heads * shape.d_head == shape.d_model
    assert shape.n_layers == depth
    assert shape.d_ff % 64 == 0
    assert 8 / 3 <= shape.d_ff / shape.d_model < 8 / 3 + 64 / shape.d_model


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"d_model": 65, "n_heads": 4}, "d_model=65 does not divide into n_heads=4"),
        ({"d_model": 64, "n_heads": 4, "n_kv_heads": 3}, "n_heads=4 is not a multiple of n_kv_heads=3"),
        ({"d_model": 64, "n_heads": 4, "d_head": 15}, "d_head=15 is odd"),
        ({"d_model": 0, "n_heads": 4}, "greater than 0"),
        ({"d_model": 64, "n_heads": 4, "positions": "alibi"}, "'rope' or 'learned'"),
        ({"d_model": 64, "n_heads": 4, "d_modle": 3}, "d_modle"),
    ],
)
def test_impossible_shapes_say_what_is_wrong(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelShape(vocab_size=10, n_layers=1, **fields)


def test_rope_scaling_needs_rope() -> None:
    scaling = Llama3RopeScaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_context=64)
    with pytest.raises(ValidationError, match="rope_scaling needs"):
        shape_from_depth(2, 10, positions="learned", rope_scaling=scaling)


def test_an_explicit_field_wins_over_the_dial_and_the_rest_follows() -> None:
    shape = resolve_shape(ModelSettings(depth=6, d_model=256, feed_forward="gelu"), vocab_size=500)
    assert (shape.n_layers, shape.d_model, shape.n_heads, shape.d_head, shape.d_ff) == (6, 256, 4, 64, 1024)
    shape = resolve_shape(ModelSettings(depth=6, n_layers=2, n_heads=3), vocab_size=500)
    assert (shape.n_layers, shape.d_model, shape.d_head) == (2, 384, 128)


def test_queries_and_keys_are_normed_by_default_where_positions_are_rotary() -> None:
    assert resolve_shape(ModelSettings(), 500).qk_norm
    assert not resolve_shape(ModelSettings(qk_norm=False), 500).qk_norm
    assert not resolve_shape(ModelSettings(positions="learned"), 500).qk_norm
    assert not ModelShape(vocab_size=10, n_layers=1, d_model=8, n_heads=2).qk_norm, "an imported LLaMA has none"


def test_a_recipes_impossible_shape_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"\[model\].*n_kv_heads=4"):
        resolve_shape(ModelSettings(depth=6, n_kv_heads=4), vocab_size=500)


def test_every_field_of_the_shape_can_stand_in_a_recipe() -> None:
    assert set(ModelSettings.model_fields) == set(ModelShape.model_fields) - {"vocab_size"} | {"depth"}


def test_shape_and_settings_leave_torch_alone() -> None:
    code = "import sys, talaria.model.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
