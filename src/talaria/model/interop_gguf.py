"""A .gguf file of a LLaMA, Qwen3 or GPT-2 to a trunk and its tokenizer.

    model, tokenizer = load_gguf(Path("model.gguf"))

The tokenizer is the file's `tokenizer.huggingface.json`, which our own files have, or it is rebuilt from vocabulary and
merges (byte-level BPE). A SentencePiece vocabulary is not: such a model needs its tokenizer.json beside the .gguf file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from pydantic import ValidationError
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from talaria.errors import UserError
from talaria.model.gguf import GGUFFile
from talaria.model.layout import GGUF_GPT2, GGUF_LLAMA, GGUF_QWEN3, Layout, assemble, layout
from talaria.model.shape import Llama3RopeScaling, ModelShape
from talaria.model.transformer import Transformer
from talaria.tokens.tokenizer import Tokenizer

# How `tokenizer.ggml.pre` cuts text before merging: patterns applied one after another (llama.cpp, llama-vocab.cpp).
GPT2_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PIECES = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2_PIECES, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (GPT2_PIECES,),
    "smollm": (r"\p{N}", GPT2_PIECES),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_LLAMA3.replace("{1,3}", ""),),
}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def load_gguf(path: Path, dtype: torch.dtype = torch.float32) -> tuple[Transformer, Tokenizer]:
    """Read model and tokenizer; quantised tensors are expanded to `dtype`. Raises UserError naming file and place."""
    file = GGUFFile(path)
    shape, parts_of = _shape_and_layout(file)
    model = Transformer(shape, device="meta")
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}

    def read(name: str) -> Tensor:
        return torch.from_numpy(file.read(name))

    state = assemble(parts_of, wanted, read, str(path), dtype)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(True), _tokenizer(file)


def gguf_shape(path: Path) -> ModelShape:
    """The shape that a file's metadata describe."""
    return _shape_and_layout(GGUFFile(path))[0]


def _field(file: GGUFFile, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    """A metadata value of a known type; without a default it must be there."""
    value = file.metadata.get(key, default)
    if value is None or not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise UserError(f"{file.path}: metadata {key!r} is {value!r}, which is no use; fetch or convert the file again")
    return value


def _shape_and_layout(file: GGUFFile) -> tuple[ModelShape, Layout]:
    architecture = _field(file, "general.architecture", str)
    names = {"llama": GGUF_LLAMA, "qwen3": GGUF_QWEN3, "gpt2": GGUF_GPT2}.get(architecture)
    if names is None:
        raise UserError(
            f"{file.path}: architecture {architecture!r} is not supported; use a llama, qwen3 or gpt2 model"
        )

    def number(key: str, default: int | None = None) -> int:
        return int(_field(file, f"{architecture}.{key}", int, default))

    if "token_embd.weight" not in file.tensors:
        raise UserError(f"{file.path}: tensor 'token_embd.weight' is missing; fetch or convert the file again")
    d_model, n_heads, n_layers = number("embedding_length"), number("attention.head_count"), number("block_count")
    if n_layers > len(file.tensors):
        raise UserError(f"{file.path}: {n_layers} layers but {len(file.tensors)} tensors; fetch or convert it again")
    # Some converters write a tied output matrix a second time.
    tied = "output.weight" not in file.tensors or np.array_equal(
        file.stored("output.weight"), file.stored("token_embd.weight")
    )
    fields: dict[str, Any] = {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "d_ff": number("feed_forward_length"),
        "context": number("context_length"),
        "tie_embeddings": tied,
    }
    if architecture == "gpt2":
        fields |= {"norm": "layernorm", "positions": "learned", "feed_forward": "gelu", "bias": True}
        fields["norm_eps"] = _decimal(file, "gpt2.attention.layer_norm_epsilon")
    else:
        if number("expert_count", 0):
            raise UserError(f"{file.path}: a mixture of experts is not supported; use a dense llama model")
        d_head = number("attention.key_length", d_model // max(n_heads, 1))
        if number("rope.dimension_count", d_head) != d_head:
            raise UserError(f"{file.path}: RoPE over a part of each head is not supported; use another model")
        fields |= {
            "n_kv_heads": number("attention.head_count_kv", n_heads),
            "d_head": d_head,
            "norm_eps": _decimal(file, f"{architecture}.attention.layer_norm_rms_epsilon"),
            "rope_theta": _decimal(file, f"{architecture}.rope.freq_base", 10000.0),
            "rope_scaling": _rope_scaling(file, architecture, d_head),
            "bias": "blk.0.attn_q.bias" in file.tensors,
            "qk_norm": architecture == "qwen3",
        }
    try:
        shape = ModelShape(**fields)
    except ValidationError as error:
        raise UserError(f"{file.path}: {error.errors()[0]['msg']}; fetch or convert the file again") from None
    parts_of = layout(shape, names)
    known = {part.name for parts in parts_of.values() for part in parts} | {"rope_freqs.weight", "output.weight"}
    unread = sorted(file.tensors.keys() - known)
    if unread:
        raise UserError(f"{file.path}: tensor {unread[0]!r} belongs to a variant that is not supported")
    return shape, parts_of


def _decimal(file: GGUFFile, key: str, default: float | None = None) -> float:
    """A number as it was meant: fp32 1e-5 is 9.99999974e-6, and the shortest decimal that gives it is 1e-05."""
    return float(str(np.float32(_field(file, key, float, default))))


def _rope_scaling(file: GGUFFile, architecture: str, d_head: int) -> Llama3RopeScaling | None:
    """LLaMA 3's scaling, recognised by the divisors that llama.cpp stores for each frequency."""
    kind = file.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind != "none":
        raise UserError(f"{file.path}: rope scaling {kind!r} is not supported; use the model's Hugging Face folder")
    if "rope_freqs.weight" not in file.tensors:
        return None
    from talaria.model.attention import rope_frequencies

    divisors = file.read("rope_freqs.weight")
    scaling = Llama3RopeScaling(
        factor=float(divisors.max()), low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192
    )
    theta = _decimal(file, f"{architecture}.rope.freq_base", 10000.0)
    plain = ModelShape(vocab_size=1, n_layers=1, d_model=d_head, n_heads=1, rope_theta=theta)
    expected = rope_frequencies(plain) / rope_frequencies(plain.model_copy(update={"rope_scaling": scaling}))
    if divisors.shape != expected.shape or not np.allclose(divisors, expected.numpy(), rtol=1e-4):
        raise UserError(f"{file.path}: rope_freqs.weight is not LLaMA 3's scaling; use the model's Hugging Face folder")
    return scaling


def _tokenizer(file: GGUFFile) -> Tokenizer:
    kind = _field(file, "tokenizer.ggml.model", str)
    if kind != "gpt2":
        if (file.path.parent / "tokenizer.json").is_file():
            return Tokenizer.load(file.path.parent)
        raise UserError(
            f"{file.path}: its {kind!r} vocabulary cannot be rebuilt (byte-level BPE can); put the model's "
            "tokenizer.json and tokenizer_config.json beside it"
        )
    tokens: list[str] = _field(file, "tokenizer.ggml.tokens", list)
    kinds: list[int] = _field(file, "tokenizer.ggml.token_type", list, [NORMAL] * len(tokens))
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise UserError(f"{file.path}: tokenizer.ggml.tokens and token_type do not fit together; fetch it again")
    pre = _field(file, "tokenizer.ggml.pre", str, "default")
    whole = "tokenizer.huggingface.json" in file.metadata
    backend = _whole_backend(file, tokens, kinds) if whole else _rebuilt_backend(file, tokens, kinds, pre)

    def named(key: str) -> str | None:
        id = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if id is None:
            return None
        if not isinstance(id, int) or not 0 <= id < len(tokens):
            raise UserError(f"{file.path}: tokenizer.ggml.{key}_token_id={id!r} is not in the vocabulary")
        return tokens[id]

    bos, eos = named("bos"), named("eos")
    prefix: list[int] = []
    if bos is not None and file.metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        prefix = [tokens.index(bos)]
        if not whole:
            backend.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, prefix[0])]
            )
    return Tokenizer.from_parts(
        backend,
        chat_template=file.metadata.get("tokenizer.chat_template"),
        bos_token=bos,
        eos_token=eos,
        stop_tokens=[stop for stop in (eos, named("eot")) if stop is not None],
        prompt_prefix_ids=prefix,
    )


def _whole_backend(file: GGUFFile, tokens: list[str], kinds: list[int]) -> tokenizers.Tokenizer:
    """The tokenizer.json inside the file; its vocabulary must be the file's, but for entries spelled for llama.cpp."""
    text = _field(file, "tokenizer.huggingface.json", str)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for a text it cannot read
        raise UserError(f"{file.path}: tokenizer.huggingface.json: {error}; convert the file again") from None
    for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind in (NORMAL, CONTROL) and backend.id_to_token(id) != token:
            raise UserError(
                f"{file.path}: token {id} is {token!r}, in tokenizer.huggingface.json {backend.id_to_token(id)!r}; "
                "convert the file again"
            )
    return backend


def _rebuilt_backend(file: GGUFFile, tokens: list[str], kinds: list[int], pre: str) -> tokenizers.Tokenizer:
    """Byte-level BPE from the file's vocabulary and merges, which cuts text as `pre` says."""
    if pre not in PIECES:
        raise UserError(
            f"{file.path}: tokenizer.ggml.pre={pre!r} is not known ({', '.join(PIECES)}); "
            "use the model's Hugging Face folder"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in _field(file, "tokenizer.ggml.merges", list)]
    try:
        bpe = models.BPE(
            vocab={token: id for id, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=pre == "llama-bpe",
        )
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for a merge outside the vocabulary
        raise UserError(f"{file.path}: tokenizer.ggml.merges: {error}; fetch or convert the file again") from None
    backend = tokenizers.Tokenizer(bpe)
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PIECES[pre]]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    for token, number in zip(tokens, kinds, strict=True):
        if number in (CONTROL, USER_DEFINED):
            added = AddedToken(token, special=number == CONTROL, normalized=False)
            (backend.add_special_tokens if number == CONTROL else backend.add_tokens)([added])
    return backend
