"""Damaged and foreign model folders: one line that names the file, the tensor and the next step."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from random_weights import random_model
from safetensors.torch import load_file, save_file

from talaria.errors import UserError
from talaria.model.checkpoint import load_model, save_model
from talaria.model.shape import ModelShape, shape_from_depth
from talaria.model.transformer import Transformer
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["one two three four five"] * 20, TokenizerSettings(vocab_size=300))


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    shape = shape_from_depth(2, tokenizer.vocab_size, context=32, tie_embeddings=False)
    save_model(random_model(shape), tokenizer, tmp_path / "model")
    return tmp_path / "model"


NATIVE = [
    {"token_shift": True},
    {"ngram_embeddings": 2},
    {"qk_norm": True, "bias": True},
    {"norm": "layernorm"},
    {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "bias": True, "n_heads": 4, "n_kv_heads": 2},
]


@pytest.mark.parametrize("variant", NATIVE, ids=str)
def test_shapes_beyond_hugging_face_come_back_whole(
    variant: dict[str, object], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    shape = shape_from_depth(2, tokenizer.vocab_size, context=32, **variant)
    model = random_model(shape)
    save_model(model, tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["TalariaForCausalLM"], "transformers must not take it for a LLaMA"
    again, _ = load_model(tmp_path)
    assert again.shape == shape
    tokens = torch.arange(8)[None]
    assert torch.equal(again(tokens), model(tokens))


def test_a_loaded_model_can_be_trained_and_saved_over_its_own_folder(folder: Path, tokenizer: Tokenizer) -> None:
    """Parameters that stay mapped to the file would change, or crash the process, while the file is written again."""
    model, _ = load_model(folder)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    other = random_model(model.shape, seed=1)
    save_model(other, tokenizer, folder)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    model(torch.arange(8)[None]).sum().backward()
    save_model(model, tokenizer, folder)
    again, _ = load_model(folder)
    assert all(torch.equal(before[name], parameter) for name, parameter in again.named_parameters())


def test_dtype_is_the_callers(folder: Path) -> None:
    model, _ = load_model(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_generation_config_ends_at_every_stop_id(folder: Path, tokenizer: Tokenizer) -> None:
    generation = json.loads((folder / "generation_config.json").read_text())
    assert set(generation["eos_token_id"]) == tokenizer.stop_ids


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors)
        save_file(tensors, path)

    return damage


def change_config(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def escaping_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "../outside.safetensors"}}')


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


K_PROJ, UP_PROJ = "model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "model.safetensors: not a whole safetensors file"),
        (cut_header, "model.safetensors: not a whole safetensors file"),
        (empty, "model.safetensors: not a whole safetensors file"),
        (change_tensors(lambda tensors: tensors.pop(K_PROJ)), f"{K_PROJ!r} is missing"),
        (change_tensors(lambda tensors: tensors.update({UP_PROJ: torch.zeros(3, 4)})), rf"{UP_PROJ!r} is \[3, 4\]"),
        (change_tensors(lambda tensors: tensors.update(extra=torch.zeros(1))), "'extra' has no place"),
        (change_config(num_hidden_layers=1), "model.layers.1"),
        (change_config(num_hidden_layers=3), "model.layers.2.*missing"),
        (change_config(num_hidden_layers=10**12), "1000000000000 layers"),
        (change_config(num_attention_heads="two"), "config.json"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json: not a JSON object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
        (only_pickle, "pickled .bin weights"),
        (escaping_index, "outside the folder"),
        (missing_shard, "model-00001-of-00002.safetensors: no such file"),
    ],
)
def test_a_damaged_folder_is_one_line_that_names_the_place(
    folder: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(folder)
    with pytest.raises(UserError, match=words) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert str(folder.name) in str(caught.value)


def test_paths_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        load_model(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes.txt: not a model"):
        load_model(tmp_path / "notes.txt")


def test_a_native_folder_with_an_impossible_shape_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shape = ModelShape(vocab_size=300, n_layers=1, d_model=16, n_heads=2, token_shift=True)
    save_model(Transformer(shape), tokenizer, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["talaria"]["n_heads"] = 0
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config.json: .*n_heads"):
        load_model(tmp_path)
