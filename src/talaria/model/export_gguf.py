"""A trunk and its tokenizer to one .gguf file that llama.cpp runs, and `load_gguf` reads back.

    export_gguf(model, tokenizer, Path("mine.gguf"), "q8_0")

The architecture is llama, qwen3 (with qk_norm) or gpt2. llama.cpp knows a byte-level vocabulary and its merges, but
cuts a text before merging by patterns of its own, of which the file names one; `tokenizer.huggingface.json` holds the
whole tokenizer for readers that can use it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talaria.errors import UserError
from talaria.model import interop_huggingface as huggingface
from talaria.model.gguf_writer import write_gguf
from talaria.model.interop_gguf import CONTROL, GPT2_PIECES, NORMAL, PIECES, UNUSED, USER_DEFINED
from talaria.model.layout import (
    GGUF_GPT2,
    GGUF_LLAMA,
    GGUF_QWEN3,
    HUGGINGFACE_GPT2,
    HUGGINGFACE_LLAMA,
    Names,
    disassemble,
    layout,
)
from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer
from talaria.tokens import vocabulary
from talaria.tokens.tokenizer import KNOWN_STOPS, Tokenizer

TYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "q8_0": ("Q8_0", 7)}  # the matrices' type, ggml's number of the file's
# llama.cpp has no pattern that cuts as our own tokenizers do. Of those that it has long known this one comes nearest,
# once runs of spaces and tabs are entries of their own ("user-defined": found in the text before it is cut). What
# differs then: an odd run of spaces before a word gives its last space to the word, and 't in 'text is a contraction.
NEAREST = "qwen2"
_RUNS = {vocabulary.BYTE_TO_CHARACTER[ord(blank)]: blank for blank in " \t"}


def export_gguf(model: Transformer, tokenizer: Tokenizer, path: Path, type: str = "f32") -> None:
    """Write the file. Matrices and tables are of `type` ("f32", "f16", "q8_0"), vectors and positions always fp32;
    under q8_0 a matrix whose rows are not a multiple of 32 is fp16, as in llama.cpp's own files.

    Raises UserError for a shape or a tokenizer that llama.cpp does not compute.
    """
    shape = model.shape
    architecture, names = _architecture(shape)
    stored, file_type = TYPES[type]
    metadata: dict[str, Any] = {
        "general.architecture": architecture,
        "general.name": path.stem,
        "general.file_type": file_type,
        "general.quantization_version": 2,
    }
    metadata |= {f"{architecture}.{key}": value for key, value in _shape_metadata(shape).items()}
    metadata |= tokenizer_metadata(tokenizer, shape.vocab_size)
    state = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
    arrays = {name: tensor.numpy() for name, tensor in disassemble(layout(shape, names), state).items()}
    if shape.rope_scaling is not None:
        from talaria.model.attention import rope_frequencies

        plain = shape.model_copy(update={"rope_scaling": None})
        arrays["rope_freqs.weight"] = (rope_frequencies(plain) / rope_frequencies(shape)).float().numpy()
    write_gguf(path, metadata, {name: (values, _stored_as(name, values, stored)) for name, values in arrays.items()})


def _architecture(shape: ModelShape) -> tuple[str, Names]:
    names = huggingface.names_for(shape)
    if names is None:
        raise UserError(f"llama.cpp does not compute this model: {huggingface.what_no_class_has(shape)}")
    if names is HUGGINGFACE_GPT2:
        return "gpt2", GGUF_GPT2
    if names is HUGGINGFACE_LLAMA:
        return "llama", GGUF_LLAMA
    if shape.rope_scaling is not None:
        raise UserError("llama.cpp's qwen3 has no llama3 rope scaling; export --to huggingface")
    return "qwen3", GGUF_QWEN3


def _stored_as(name: str, values: NDArray[np.float32], kind: str) -> str:
    if values.ndim == 1 or name == "position_embd.weight":
        return "F32"
    return "F16" if kind == "Q8_0" and values.shape[-1] % 32 else kind


def _shape_metadata(shape: ModelShape) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "context_length": shape.context,
        "embedding_length": shape.d_model,
        "block_count": shape.n_layers,
        "feed_forward_length": shape.d_ff,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
    }
    if shape.norm == "layernorm":
        return fields | {"attention.layer_norm_epsilon": shape.norm_eps}
    return fields | {
        "attention.layer_norm_rms_epsilon": shape.norm_eps,
        "attention.key_length": shape.d_head,
        "attention.value_length": shape.d_head,
        "rope.dimension_count": shape.d_head,
        "rope.freq_base": shape.rope_theta,
    }


def tokenizer_metadata(tokenizer: Tokenizer, n_rows: int) -> dict[str, Any]:
    """The `tokenizer.*` entries. `n_rows` of the embedding may be more than the vocabulary: the rest is unused."""
    written = json.loads(tokenizer.backend.to_str())
    pieces = _pieces(written)
    is_own = pieces == (vocabulary.PIECES,)
    pre = NEAREST if is_own else next((name for name, known in PIECES.items() if known == pieces), None)
    if pre is None:
        raise UserError(f"llama.cpp has no name for how this tokenizer cuts text {pieces}; export --to huggingface")
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer names no eos_token, without which llama.cpp takes token 11; name one and retry")
    if tokenizer.prompt_prefix_ids not in ([], [tokenizer.bos_id]):
        raise UserError(f"llama.cpp puts bos or nothing before a prompt, not {tokenizer.prompt_prefix_ids}")
    names = {id: token for token, id in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    if max(names) >= n_rows:
        raise UserError(f"the tokenizer has token {max(names)}, the model {n_rows} rows; they do not belong together")
    special, added = set(tokenizer.special_ids.values()), set(tokenizer.backend.get_added_tokens_decoder())
    runs = {
        token for token in names.values() if is_own and len(token) > 1 and token[0] in _RUNS and len(set(token)) == 1
    }
    tokens, kinds = [], []
    for id in range(n_rows):
        token = names.get(id)
        if token is None:
            tokens.append(f"[UNUSED{id}]")
            kinds.append(UNUSED)
        elif token in runs:
            tokens.append(_RUNS[token[0]] * len(token))
            kinds.append(USER_DEFINED)
        else:
            tokens.append(token)
            kinds.append(CONTROL if id in special else USER_DEFINED if id in added else NORMAL)
    # llama.cpp ends at eos, at eot and at the usual names; eot is the place for one that it would not know.
    unknown = tokenizer.stop_ids - {tokenizer.eos_id} - {tokenizer.token_to_id(stop) for stop in KNOWN_STOPS}
    if len(unknown) > 1:
        raise UserError(f"llama.cpp has place for one more token that ends an answer, not for {sorted(unknown)}")
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in written["model"]["merges"]]
    merges = [f"{left} {right}" for left, right in pairs if not {left, right, left + right} & runs]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.eot_token_id": next(iter(unknown), tokenizer.eos_id),
        "tokenizer.ggml.padding_token_id": tokenizer.pad_id,
        "tokenizer.ggml.add_bos_token": bool(tokenizer.prompt_prefix_ids),
        "tokenizer.chat_template": tokenizer.chat_template,
        "tokenizer.huggingface.json": tokenizer.backend.to_str(),
    }
    return {key: value for key, value in metadata.items() if value is not None}


def _pieces(written: dict[str, Any]) -> tuple[str, ...]:
    """The patterns that a tokenizer.json cuts text by, one after another, before it merges."""
    if written["model"]["type"] != "BPE" or (written["decoder"] or {}).get("type") != "ByteLevel":
        raise UserError("only byte-level BPE can be written to GGUF, not this tokenizer; export --to huggingface")
    if written["normalizer"] not in (None, {"type": "NFC"}):  # text is nearly always in NFC already
        raise UserError(f"llama.cpp has no normalizer {written['normalizer']}; export --to huggingface")
    pre = written["pre_tokenizer"] or {}
    patterns: list[str] = []
    for step in pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]:
        match step:
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                patterns.append(pattern)
            case {"type": "Digits", "individual_digits": True}:
                patterns.append(r"\p{N}")
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}:
                patterns += [GPT2_PIECES] if use_regex else []
            case _:
                patterns.append(json.dumps(step))  # no pattern of llama.cpp's is like it, and the error shows it
    return tuple(patterns)
