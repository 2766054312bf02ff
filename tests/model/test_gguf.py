"""GGUF files written with the reference package and read by ours; then damaged in every way a file can be."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_weights import random_model

from talaria.errors import UserError
from talaria.model import layout as names
from talaria.model.checkpoint import load_model
from talaria.model.gguf import TENSOR_TYPES, GGUFFile, dequantise
from talaria.model.interop_gguf import PIECES
from talaria.model.layout import layout
from talaria.model.shape import shape_from_depth

gguf = pytest.importorskip("gguf")
BYTES = [chr(byte) for byte in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]]
BYTES += [chr(256 + n) for n in range(256 - len(BYTES))]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTES, "Ġt", "he", "Ġthe"]
SIZE = {"d": 64, "layers": 2, "heads": 4, "kv_heads": 2, "d_ff": 96, "context": 64}


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_every_block_format_is_the_references(name: str) -> None:
    kind = gguf.GGMLQuantizationType[name]
    values = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    raw = gguf.quants.quantize(values, kind)
    ours = dequantise(raw.view(np.uint8).reshape(-1), TENSOR_TYPES[kind.value])
    np.testing.assert_array_equal(ours.reshape(values.shape), gguf.quants.dequantize(raw, kind))


def test_raw_bytes_of_every_value_are_read_as_the_reference_does() -> None:
    """Random blocks reach nibbles and signs that a quantiser never writes."""
    random = np.random.default_rng(1)
    for number in (2, 3, 8):
        kind = TENSOR_TYPES[number]
        raw = random.integers(0, 256, (100, kind.bytes), dtype=np.uint8)
        raw[:, :4] = random.normal(size=(100, 2)).astype("<f2").view(np.uint8)
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(number)).reshape(-1)
        np.testing.assert_array_equal(dequantise(raw.reshape(-1), kind), expected)


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf.py: half-rotation rows to interleaved pairs."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def write_llama(
    path: Path, kind: str = "F32", metadata: dict[str, Any] | None = None, drop: str = "", pre: str = "gpt-2"
) -> dict[str, np.ndarray]:
    """A tiny LLaMA; returns its weights, unpermuted, under GGUF names."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(SIZE["layers"])
    writer.add_context_length(SIZE["context"])
    writer.add_embedding_length(SIZE["d"])
    writer.add_feed_forward_length(SIZE["d_ff"])
    writer.add_head_count(SIZE["heads"])
    writer.add_head_count_kv(SIZE["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["Ġ t", "h e", "Ġt he"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    for key, value in (metadata or {}).items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_string)(key, value)
    kv = SIZE["d"] // SIZE["heads"] * SIZE["kv_heads"]
    shapes = {"token_embd.weight": (len(TOKENS), SIZE["d"]), "output_norm.weight": (SIZE["d"],)}
    for layer in range(SIZE["layers"]):
        shapes |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (SIZE["d"],),
                "attn_q": (SIZE["d"], SIZE["d"]),
                "attn_k": (kv, SIZE["d"]),
                "attn_v": (kv, SIZE["d"]),
                "attn_output": (SIZE["d"], SIZE["d"]),
                "ffn_norm": (SIZE["d"],),
                "ffn_gate": (SIZE["d_ff"], SIZE["d"]),
                "ffn_up": (SIZE["d_ff"], SIZE["d"]),
                "ffn_down": (SIZE["d"], SIZE["d_ff"]),
            }.items()
        }
    random = np.random.default_rng(0)
    weights = {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, weight in weights.items():
        if name == drop:
            continue
        heads = SIZE["heads"] if "attn_q" in name else SIZE["kv_heads"] if "attn_k" in name else 0
        stored = permute(weight, heads) if heads else weight
        quantised = gguf.GGMLQuantizationType[kind if weight.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(stored, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    write_llama(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def test_query_and_key_rows_are_put_back_in_half_rotation_order(tmp_path: Path) -> None:
    weights = write_llama(tmp_path / "tiny.gguf")
    model, _ = load_model(tmp_path / "tiny.gguf")
    expected = np.concatenate([weights[f"blk.1.attn_{part}.weight"] for part in "qkv"])
    np.testing.assert_array_equal(model.blocks[1].attention.qkv.weight.detach().numpy(), expected)
    expected = np.concatenate([weights["blk.0.ffn_gate.weight"], weights["blk.0.ffn_up.weight"]])
    np.testing.assert_array_equal(model.blocks[0].feed_forward.up.weight.detach().numpy(), expected)
    assert model.shape.tie_embeddings and model.shape.n_kv_heads == 2
    assert model(torch.arange(8)[None]).isfinite().all()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "F16", "BF16"])
def test_quantised_files_load_close_to_their_weights(kind: str, tmp_path: Path) -> None:
    weights = write_llama(tmp_path / "tiny.gguf", kind)
    model, _ = load_model(tmp_path / "tiny.gguf")
    loaded = model.blocks[0].feed_forward.down.weight.detach().numpy()
    original = weights["blk.0.ffn_down.weight"]
    # Half a step of a block of 32 values that spans about 4 deviations each way.
    step = {"Q4_0": 0.2, "Q4_1": 0.1, "Q8_0": 0.01}.get(kind, 0.01)
    assert np.abs(loaded - original).max() < step
    assert not np.array_equal(loaded, original)


def test_tokenizer_and_template_come_from_the_file(llama: Path) -> None:
    _, tokenizer = load_model(llama)
    the = TOKENS.index("Ġthe")
    assert tokenizer.encode("a the") == [TOKENS.index("a"), the]
    assert tokenizer.encode("<|im_end|>") != [2], "text never becomes a control token"
    assert tokenizer.special_ids == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.prompt_prefix_ids) == (1, 2, [])
    assert tokenizer.chat_template is not None and "message" in tokenizer.chat_template
    text = "naïve 中文 🎉\n\tx = 12"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_llama3_vocabularies_begin_with_bos_unless_told_otherwise(tmp_path: Path) -> None:
    write_llama(tmp_path / "tiny.gguf", pre="llama-bpe")
    assert load_model(tmp_path / "tiny.gguf")[1].prompt_prefix_ids == [1]


CUTS = {
    "gpt-2": ["I", "'ll", " pay", " 1234", "$", " ", "  x"[1:], "!"],
    "smollm": ["I", "'ll", " pay", " ", "1", "2", "3", "4", "$", " ", " x", "!"],
    "llama-bpe": ["I", "'ll", " pay", " ", "123", "4", "$", " ", " x", "!"],
    "qwen2": ["I", "'ll", " pay", " ", "1", "2", "3", "4", "$", " ", " x", "!"],
}


@pytest.mark.parametrize("pre", CUTS)
def test_text_is_cut_as_the_named_pattern_says(pre: str) -> None:
    from tokenizers import Regex, pre_tokenizers

    cuts = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PIECES[pre]])
    assert [piece for piece, _ in cuts.pre_tokenize_str("I'll pay 1234$  x!")] == CUTS[pre]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba'"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.json"),
        ({"tokenizer.ggml.pre": "klingon"}, "'klingon' is not known"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.rope.scaling.type": "yarn"}, "rope scaling 'yarn'"),
        ({"llama.rope.dimension_count": 8}, "RoPE over a part"),
        ({"llama.block_count": 3}, "'blk.2.attn_norm.weight' is missing"),
        ({"llama.block_count": 1}, "'blk.1.attn_k.weight' belongs to a variant"),
        ({"llama.attention.head_count_kv": 3}, "n_kv_heads=3"),
        ({"llama.feed_forward_length": 64}, r"'blk.0.ffn_gate.weight' is \[96, 64\]"),
        ({"llama.embedding_length": "wide"}, "'llama.embedding_length' is 'wide'"),
        ({"tokenizer.ggml.eos_token_id": 9999}, "eos_token_id=9999"),
    ],
)
def test_what_cannot_be_read_is_one_line(metadata: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    original = gguf.GGUFWriter.add_key_value

    def replace_first(self: Any, key: str, value: Any, *rest: Any, **options: Any) -> None:
        """The writer refuses a key twice: what the test changes wins."""
        if key in metadata:
            value = metadata[key]
            rest = (gguf.GGUFValueType.UINT32 if isinstance(value, int) else gguf.GGUFValueType.STRING,)
            options = {}
        if not any(key in entries for entries in self.kv_data):
            original(self, key, value, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_key_value", replace_first)
        write_llama(path, metadata=metadata)
    with pytest.raises(UserError, match=words) as caught:
        load_model(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    write_llama(tmp_path / "tiny.gguf", drop="blk.1.ffn_up.weight")
    with pytest.raises(UserError, match=r"'blk.1.ffn_up.weight' is missing"):
        load_model(tmp_path / "tiny.gguf")


def test_a_k_quant_is_named_with_what_would_do(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_llama(path)
    data = path.read_bytes()
    name = b"blk.0.ffn_up.weight"
    at = data.index(name) + len(name) + 4 + 16
    path.write_bytes(data[:at] + struct.pack("<I", 12) + data[at + 4 :])
    with pytest.raises(UserError, match="stored as Q4_K; known are F32"):
        load_model(path)


def test_every_truncation_is_a_user_error(llama: Path) -> None:
    data = llama.read_bytes()
    header_end = data.index(b"blk.1.ffn_norm.weight")
    cuts = sorted({0, 1, 4, 8, 16, 23, *range(24, header_end, 61), header_end, len(data) // 2, len(data) - 1})
    for cut in cuts:
        llama.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"tiny\.gguf"):
            GGUFFile(llama)


def test_absurd_counts_allocate_nothing(llama: Path) -> None:
    """A changed byte may announce 2^60 tensors, entries, letters or items; none may be believed."""
    data = llama.read_bytes()
    for at in (8, 16, 24, 32 + len("general.architecture") + 4):
        llama.write_bytes(data[:at] + struct.pack("<Q", 1 << 60) + data[at + 8 :])
        with pytest.raises(UserError, match=r"announces|unknown type"):
            GGUFFile(llama)


def test_random_damage_never_escapes_as_anything_but_a_user_error(llama: Path) -> None:
    data = llama.read_bytes()
    random = np.random.default_rng(0)
    header = data.index(b"blk.1.ffn_norm.weight")
    for _ in range(300):
        damaged = bytearray(data)
        for at in random.integers(0, header, 3):
            damaged[at] = random.integers(256)
        llama.write_bytes(bytes(damaged))
        try:
            load_model(llama)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("start", "words"),
    [(b"PK\x03\x04", "not a GGUF file"), (b"GGUF\x00\x00\x00\x03", "version"), (b"GGUF\x01\x00\x00\x00", "version 1")],
)
def test_other_files_are_named_as_such(start: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(start + b"\0" * 64)
    with pytest.raises(UserError, match=words):
        load_model(tmp_path / "x.gguf")


@pytest.mark.parametrize("arch", ["LLAMA", "GPT2"])
def test_tensor_names_are_the_reference_packages(arch: str) -> None:
    """The package maps each Hugging Face name to its GGUF name; our two layouts must pair up in the same way."""
    variant = (
        {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "bias": True} if arch == "GPT2" else {}
    )
    shape = shape_from_depth(2, 64, tie_embeddings=False, qk_norm=False, **variant)
    theirs = layout(shape, names.HUGGINGFACE_GPT2 if arch == "GPT2" else names.HUGGINGFACE_LLAMA)
    ours = layout(shape, names.GGUF_GPT2 if arch == "GPT2" else names.GGUF_LLAMA)
    reference = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch], 2)
    for parameter, parts in theirs.items():
        for part, stored in zip(parts, ours[parameter], strict=True):
            assert reference.get_name(part.name, try_suffixes=(".weight", ".bias")) == stored.name


def test_a_gpt2_file_loads_with_its_tied_output_written_twice(tmp_path: Path) -> None:
    fields = {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "bias": True}
    shape = shape_from_depth(2, len(TOKENS), context=16, **fields)
    model = random_model(shape)
    tensors = {
        part.name: piece.detach().numpy()
        for parameter, (part,) in layout(shape, names.GGUF_GPT2).items()
        for piece in [model.get_parameter(parameter)]
    }
    tensors["output.weight"] = tensors["token_embd.weight"]
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "gpt2")
    writer.add_block_count(2)
    writer.add_context_length(16)
    writer.add_embedding_length(shape.d_model)
    writer.add_feed_forward_length(shape.d_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["Ġ t"])
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded, tokenizer = load_model(tmp_path / "tiny.gguf")
    assert loaded.shape.model_copy(update={"norm_eps": 1e-5}) == shape
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert tokenizer.eos_id is None
