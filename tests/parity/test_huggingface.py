"""Random tiny LLaMA, Qwen3 and GPT-2 against transformers: logits, gradients, and folders in both directions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from random_weights import random_model
from torch import Tensor

from talaria.errors import UserError
from talaria.model import interop_huggingface as huggingface
from talaria.model.checkpoint import export_huggingface, load_model, load_weights, save_model
from talaria.model.layout import disassemble
from talaria.model.shape import ModelShape, shape_from_depth
from talaria.model.transformer import Transformer
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

SIZE = {"vocab_size": 320, "initializer_range": 0.15}
LLAMA = SIZE | {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GPT2 = (
    SIZE
    | {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, grouped queries": ("Llama", LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "llama, tied": ("Llama", LLAMA | {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama, one key head, bias, wide heads": (
        "Llama",
        LLAMA | {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "head_dim": 20},
    ),
    "llama, scaled rope": ("Llama", LLAMA | {"num_key_value_heads": 2, "rope_parameters": LLAMA3_ROPE}),
    "qwen3, grouped queries": ("Qwen3", LLAMA | {"num_key_value_heads": 2, "head_dim": 12}),
    "qwen3, tied, wide heads, scaled rope": (
        "Qwen3",
        LLAMA | {"num_key_value_heads": 1, "head_dim": 20, "tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE},
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2, untied, narrow": ("GPT2", GPT2 | {"tie_word_embeddings": False, "n_inner": 56}),
}


def reference(case: str) -> Any:
    """A transformers model with no parameter at a special value."""
    family, fields = CASES[case]
    config = getattr(transformers, f"{family}Config")(**fields)
    torch.manual_seed(5)
    model = getattr(transformers, "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    return model.eval()


def draw_tokens(batch: int = 2, length: int = 40) -> Tensor:
    return torch.randint(320, (batch, length), generator=torch.Generator().manual_seed(3))


def ours_from(theirs: Any, folder: Path, **options: Any) -> Transformer:
    theirs.save_pretrained(folder, **options)
    shape = huggingface.shape_from_config(json.loads((folder / "config.json").read_text()), folder / "config.json")
    return load_weights(shape, folder)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["The quick brown fox jumps over 13 lazy dogs.", "混在一起的文字。", "def f(x):\n    return x\n"] * 20
    return Tokenizer.train(texts, TokenizerSettings(vocab_size=320))


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_transformers(case: str, tmp_path: Path) -> None:
    theirs = reference(case)
    ours, tokens = ours_from(theirs, tmp_path), draw_tokens()
    their_logits, our_logits = theirs(tokens).logits, ours(tokens)
    torch.testing.assert_close(our_logits, their_logits, rtol=0, atol=1e-4)

    targets = draw_tokens(2, 41)[:, 1:]
    for logits in (their_logits, our_logits):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    in_their_names = disassemble(huggingface.huggingface_layout(ours.shape), gradients)
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert in_their_names.keys() == expected.keys()
    for name, gradient in in_their_names.items():
        torch.testing.assert_close(
            gradient, expected[name], rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_fp64_leaves_no_difference_of_formula(tmp_path: Path) -> None:
    """What is left in fp32 is rounding. (GPT-2 alone: transformers keeps LLaMA's norms in fp32.)"""
    theirs, tokens = reference("gpt2").double(), draw_tokens()
    theirs.save_pretrained(tmp_path)
    shape = huggingface.shape_from_config(theirs.config.to_dict(), tmp_path)
    with torch.no_grad():
        logits = load_weights(shape, tmp_path, torch.float64)(tokens)
        torch.testing.assert_close(logits, theirs(tokens).logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_an_exported_folder_is_the_same_model_in_transformers(case: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    ours = ours_from(reference(case), tmp_path / "imported")
    export_huggingface(ours, tokenizer, tmp_path / "exported")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "exported", output_loading_info=True, dtype="auto"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    with torch.no_grad():
        torch.testing.assert_close(ours(draw_tokens()), model(draw_tokens()).logits, rtol=0, atol=1e-4)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    text = "The fox, 混在 13 dogs: def f(x):\n    return x"
    assert theirs(text, add_special_tokens=False).input_ids == tokenizer.encode(text)
    assert model.generation_config.eos_token_id == sorted(tokenizer.stop_ids)


@pytest.mark.parametrize("case", CASES)
def test_a_saved_folder_loads_bit_for_bit(case: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    ours = ours_from(reference(case), tmp_path / "imported")
    save_model(ours, tokenizer, tmp_path / "saved")
    again, its_tokenizer = load_model(tmp_path / "saved")
    assert again.shape == ours.shape
    state, expected = again.state_dict(), ours.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert its_tokenizer.stop_ids == tokenizer.stop_ids


def test_a_model_of_the_depth_dial_is_qwen3_in_transformers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """What a recipe trains by default must leave the house: class, per-head norms, generation."""
    ours = random_model(shape_from_depth(2, tokenizer.vocab_size, context=64))
    export_huggingface(ours, tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("qwen3", ["Qwen3ForCausalLM"])
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs) is transformers.Qwen3ForCausalLM
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert theirs.model.layers[1].self_attn.q_norm.weight.shape == (ours.shape.d_head,)
    with torch.no_grad():
        torch.testing.assert_close(ours(draw_tokens()), theirs(draw_tokens()).logits, rtol=0, atol=1e-4)


def test_sharded_folders_load(tmp_path: Path) -> None:
    theirs = reference("llama, grouped queries")
    ours = ours_from(theirs, tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    with torch.no_grad():
        torch.testing.assert_close(ours(draw_tokens()), theirs(draw_tokens()).logits, rtol=0, atol=1e-4)


def test_positions_agree_beyond_the_start(tmp_path: Path) -> None:
    """Left padding: the same tokens, shifted positions, a mask."""
    theirs = reference("gpt2")
    ours, tokens = ours_from(theirs, tmp_path), draw_tokens(1, 12)
    positions = torch.arange(20, 32)[None]
    with torch.no_grad():
        expected = theirs(tokens, position_ids=positions).logits
        torch.testing.assert_close(ours(tokens, positions), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("llama, tied", {"model_type": "mamba"}, "model_type 'mamba'"),
        ("llama, tied", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("llama, tied", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama, tied", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type='yarn'"),
        ("llama, tied", {"hidden_size": None}, "config.json"),
        ("qwen3, grouped queries", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("qwen3, grouped queries", {"attention_bias": True}, "mlp_bias=False"),
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_what_the_trunk_cannot_compute_is_refused(case: str, changes: dict[str, Any], words: str) -> None:
    config = reference(case).config.to_dict() | changes
    with pytest.raises(UserError, match=words):
        huggingface.shape_from_config(config, Path("folder/config.json"))


def test_older_folders_keep_rope_in_two_keys() -> None:
    """transformers 4 wrote rope_theta and rope_scaling; reading neither would silently give theta 10,000."""
    config = reference("llama, tied").config.to_dict()
    del config["rope_parameters"]
    config |= {
        "rope_theta": 5e5,
        "rope_scaling": {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"},
    }
    shape = huggingface.shape_from_config(config, Path("config.json"))
    assert shape.rope_theta == 5e5
    assert shape.rope_scaling is not None and shape.rope_scaling.factor == 8.0


def test_bare_gpt2_names_are_found(tmp_path: Path) -> None:
    """The first GPT-2 folders name tensors without `transformer.` and carry mask buffers."""
    from safetensors.torch import save_file

    theirs = reference("gpt2")
    state = {name.removeprefix("transformer."): tensor for name, tensor in theirs.state_dict().items()}
    del state["lm_head.weight"]
    state["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(theirs.config.to_dict()))
    shape = huggingface.shape_from_config(theirs.config.to_dict(), tmp_path / "config.json")
    with torch.no_grad():
        ours = load_weights(shape, tmp_path)
        torch.testing.assert_close(ours(draw_tokens()), theirs(draw_tokens()).logits, rtol=0, atol=1e-4)


def test_a_shape_that_no_class_computes_is_not_exported(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shape = ModelShape(vocab_size=tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, token_shift=True)
    with pytest.raises(UserError, match="no Hugging Face class"):
        export_huggingface(Transformer(shape), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
