"""GGUF files that we write: read back bit for bit by our reader, and by the reference package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import talaria
from random_weights import random_model
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from talaria.errors import UserError
from talaria.model.checkpoint import load_model, save_model
from talaria.model.export_gguf import export_gguf, tokenizer_metadata
from talaria.model.gguf import GGUFFile
from talaria.model.gguf_writer import encode
from talaria.model.interop_gguf import PIECES
from talaria.model.shape import Llama3RopeScaling, ModelShape
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

GPT2 = {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "bias": True}
SCALING = Llama3RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)
CASES: dict[str, dict[str, Any]] = {
    "llama": {"n_kv_heads": 2, "tie_embeddings": False},
    "llama, biases, rope scaling": {"bias": True, "rope_theta": 5e5, "rope_scaling": SCALING},
    "qwen3": {"qk_norm": True, "n_kv_heads": 2, "d_head": 16, "norm_eps": 1e-6},
    "gpt2": GPT2,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [
        "The fox and the 13 dogs don't run.",
        "def f(x):\n    return x\n\n\t\tpass   # 说明：函数",
        "狐狸和狗，你好。",
    ] * 20
    return Tokenizer.train(texts, TokenizerSettings(vocab_size=400))


def shape_of(case: str, tokenizer: Tokenizer) -> ModelShape:
    fields = {"n_layers": 2, "d_model": 64, "n_heads": 4, "d_ff": 96, "context": 96} | CASES[case]
    return ModelShape(vocab_size=tokenizer.vocab_size, **fields)


@pytest.mark.parametrize("case", CASES)
def test_our_reader_gives_back_every_bit(case: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(shape_of(case, tokenizer))
    export_gguf(model, tokenizer, tmp_path / "a.gguf")
    again, its_tokenizer = load_model(tmp_path / "a.gguf")
    assert again.shape == model.shape
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
    for name in ("chat_template", "bos_id", "eos_id", "pad_id", "stop_ids", "prompt_prefix_ids", "special_ids"):
        assert getattr(its_tokenizer, name) == getattr(tokenizer, name), name
    assert its_tokenizer.backend.to_str() == tokenizer.backend.to_str()


@pytest.mark.parametrize("type", ["f32", "f16", "q8_0"])
def test_the_reference_package_reads_what_was_written(type: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model = random_model(shape_of("qwen3", tokenizer).model_copy(update={"d_ff": 80}))
    export_gguf(model, tokenizer, tmp_path / "a.gguf", type)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    up = model.get_parameter("blocks.1.feed_forward.up.weight").detach().numpy()[80:]
    kind = gguf.GGMLQuantizationType[type.upper()]
    assert tensors["blk.1.ffn_up.weight"].tensor_type == kind
    np.testing.assert_array_equal(tensors["blk.1.ffn_up.weight"].data, gguf.quants.quantize(up, kind))
    assert tensors["blk.0.attn_q_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    # Rows of 80 fill no whole number of Q8_0's blocks.
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == {"q8_0": "F16"}.get(type, type.upper())
    assert (
        reader.fields["general.file_type"].contents()
        == gguf.LlamaFileType[f"MOSTLY_{type.upper()}".replace("MOSTLY_F32", "ALL_F32")]
    )
    assert reader.fields["tokenizer.ggml.tokens"].contents()[:5] == list(tokenizer.special_ids)


def test_q8_0_is_ggmls_to_the_last_bit() -> None:
    """Halves round away from zero, not to even; a block of zeros has no scale to divide by."""
    gguf = pytest.importorskip("gguf")
    values = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    values[0] = 0
    values[1] = np.arange(-16, 16, 0.5)  # with a scale of 1, so that every other value is a half
    values[1, [0, 32]] = 127
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0).tobytes()
    assert encode(values, "Q8_0") == expected


def test_llama_rows_are_turned_to_pairs_and_qwen3s_are_not(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """llama.cpp turns channels 2i, 2i+1 in a llama and i, i + E/2 in a qwen3; either mistake still writes text."""
    for case in ("llama", "qwen3"):
        model = random_model(shape_of(case, tokenizer))
        export_gguf(model, tokenizer, tmp_path / f"{case}.gguf")
        query = model.get_parameter("blocks.0.attention.qkv.weight").detach().numpy()[:16]  # the first head
        stored = GGUFFile(tmp_path / f"{case}.gguf").read("blk.0.attn_q.weight")[:16]
        pairs = query.reshape(2, 8, -1).swapaxes(0, 1).reshape(query.shape)
        np.testing.assert_array_equal(stored, pairs if case == "llama" else query)


def test_runs_of_blanks_are_entries_that_llama_cpp_finds_before_it_cuts(tokenizer: Tokenizer) -> None:
    """Its patterns leave the last space of an indentation to the word after it; ours keep a run whole."""
    written = tokenizer_metadata(tokenizer, tokenizer.vocab_size + 3)
    tokens, kinds = written["tokenizer.ggml.tokens"], written["tokenizer.ggml.token_type"]
    for run in (2, 4, 8, 16):
        assert kinds[tokens.index(" " * run)] == 4
    assert "ĠĠ" not in tokens and "Ġ Ġ" not in written["tokenizer.ggml.merges"]
    assert "Ġ" in tokens
    assert kinds[-3:] == [5, 5, 5], "rows of the embedding that no token has"
    assert [kinds[id] for id in tokenizer.special_ids.values()] == [3] * 5


@pytest.mark.parametrize("pre", PIECES)
def test_a_tokenizer_that_llama_cpp_knows_keeps_its_name(pre: str) -> None:
    """A model that came from elsewhere must not be cut by the pattern nearest to ours."""
    cuts: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PIECES[pre]]
    if pre == "smollm":  # as its own folder has it
        cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend = Backend(models.BPE(vocab={"a": 0, "Ġ": 1, "ĠĠ": 2}, merges=[("Ġ", "Ġ")]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence(cuts), decoders.ByteLevel()
    written = tokenizer_metadata(Tokenizer.from_parts(backend, eos_token="a"), 3)
    assert written["tokenizer.ggml.pre"] == pre
    assert written["tokenizer.ggml.tokens"] == ["a", "Ġ", "ĠĠ"], "runs of spaces are split apart for ours alone"


def character_tokenizer() -> Tokenizer:
    return Tokenizer.train(["abc"], TokenizerSettings(kind="character"))


def tokenizer_without_end() -> Tokenizer:
    backend = Backend(models.BPE(vocab={"a": 0}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return Tokenizer.from_parts(backend)


def oddly_cut_tokenizer() -> Tokenizer:
    tokenizer = tokenizer_without_end()
    tokenizer.backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return Tokenizer.from_parts(tokenizer.backend, eos_token="a")


@pytest.mark.parametrize(
    ("fields", "make_tokenizer", "words"),
    [
        ({"token_shift": True}, None, "token_shift=True.* train with model.token_shift=false"),
        ({"ngram_embeddings": 2}, None, "ngram_embeddings=2"),
        ({"norm": "layernorm"}, None, "no class mixes norm=layernorm"),
        ({"qk_norm": True, "rope_scaling": SCALING}, None, "qwen3 has no llama3 rope scaling"),
        ({}, character_tokenizer, "only byte-level BPE"),
        ({}, tokenizer_without_end, "names no eos_token"),
        ({}, oddly_cut_tokenizer, "no name for how this tokenizer cuts text"),
        ({"vocab_size": 50}, None, "the model 50 rows"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused(
    fields: dict[str, Any], make_tokenizer: Any, words: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    used = make_tokenizer() if make_tokenizer else tokenizer
    fields = {"vocab_size": used.vocab_size, "n_layers": 1, "d_model": 16, "n_heads": 2} | fields
    with pytest.raises(UserError, match=words) as caught:
        export_gguf(random_model(ModelShape(**fields)), used, tmp_path / "a.gguf")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_number_too_large_for_f16_is_refused_and_leaves_no_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(shape_of("llama", tokenizer))
    with torch.no_grad():
        model.embed.weight[0, 0] = 1e5
    with pytest.raises(UserError, match=r"token_embd.weight: holds a number beyond 65,504"):
        export_gguf(model, tokenizer, tmp_path / "a.gguf", "f16")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_inside_a_file_must_have_its_vocabulary(tokenizer: Tokenizer, tmp_path: Path) -> None:
    export_gguf(random_model(shape_of("gpt2", tokenizer)), tokenizer, tmp_path / "a.gguf")
    data = (tmp_path / "a.gguf").read_bytes()
    at = data.index(b"<|user|>")
    (tmp_path / "a.gguf").write_bytes(data[:at] + b"<|uses|>" + data[at + 8 :])
    with pytest.raises(UserError, match=r"token 2 is '<\|uses\|>', in tokenizer.huggingface.json '<\|user\|>'"):
        load_model(tmp_path / "a.gguf")


def test_the_command_writes_both_forms_and_refuses_mistakes(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model(shape_of("qwen3", tokenizer))
    save_model(model, tokenizer, tmp_path / "model")
    assert talaria("export", tmp_path / "model", "--to", "gguf", "--type", "f16", "-o", tmp_path / "a.gguf") == 0
    assert talaria("export", tmp_path / "a.gguf", "-o", tmp_path / "folder") == 0
    exported = load_model(tmp_path / "folder")[0].state_dict()
    assert all(
        torch.equal(exported[name], tensor.half().float())
        for name, tensor in model.state_dict().items()
        if tensor.ndim == 2
    )
    ends = json.loads((tmp_path / "folder" / "generation_config.json").read_text())
    assert ends == {"bos_token_id": 0, "eos_token_id": [0, 4], "pad_token_id": 4}
    capsys.readouterr()
    for arguments, code, words in [
        (["-o", tmp_path / "a.gguf", "--to", "gguf"], 1, "exists already"),
        (["-o", tmp_path / "b.bin", "--to", "gguf"], 2, "ends in .gguf"),
        (["-o", tmp_path / "b", "--to", "onnx"], 2, "choose huggingface or gguf"),
        (["-o", tmp_path / "b", "--type", "f16"], 2, "with --to gguf"),
        (["-o", tmp_path / "b.gguf", "--to", "gguf", "--type", "q4"], 2, "choose f32, f16, q8_0"),
    ]:
        assert talaria("export", tmp_path / "model", *arguments) == code
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    save_model(
        random_model(ModelShape(vocab_size=tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, token_shift=True)),
        tokenizer,
        tmp_path / "shifted",
    )
    assert talaria("export", tmp_path / "shifted", "-o", tmp_path / "c") == 1
    assert f"{tmp_path / 'shifted'}: no Hugging Face class" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
