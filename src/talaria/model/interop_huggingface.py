"""Hugging Face folders: config.json and safetensors to a shape and a state, and back.

Read: LlamaForCausalLM, Qwen3ForCausalLM and GPT2LMHeadModel, one file or sharded. Written: the same three where they
can express the shape; `export_huggingface` refuses the others, which are saved under the trunk's own names.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from talaria.errors import UserError
from talaria.model.layout import HUGGINGFACE_GPT2, HUGGINGFACE_LLAMA, HUGGINGFACE_QWEN3, Layout, Names, layout
from talaria.model.shape import Llama3RopeScaling, ModelShape

Config = dict[str, Any]
# Buffers that older exports carry along; they are recomputed.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


def names_for(shape: ModelShape) -> Names | None:
    """The Hugging Face architecture that computes what `Transformer(shape)` does; None where there is none."""
    if shape.token_shift or shape.ngram_embeddings:
        return None
    variant = (shape.norm, shape.positions, shape.feed_forward)
    if variant == ("rmsnorm", "rope", "swiglu") and not (shape.qk_norm and shape.bias):
        return HUGGINGFACE_QWEN3 if shape.qk_norm else HUGGINGFACE_LLAMA
    if shape.qk_norm:
        return None
    square = shape.n_kv_heads == shape.n_heads and shape.d_attention == shape.d_model
    return HUGGINGFACE_GPT2 if variant == ("layernorm", "learned", "gelu") and shape.bias and square else None


def what_no_class_has(shape: ModelShape) -> str:
    """Why `names_for` knows no class, with what to change: a clause for an error message."""
    if shape.token_shift or shape.ngram_embeddings:
        return (
            f"it has token_shift={shape.token_shift} and ngram_embeddings={shape.ngram_embeddings}, which is ours "
            "alone; train with model.token_shift=false model.ngram_embeddings=0 to export"
        )
    variant = ", ".join(f"{key}={getattr(shape, key)}" for key in ("norm", "positions", "feed_forward", "bias"))
    return (
        f"no class mixes {variant}, qk_norm={shape.qk_norm} with {shape.n_kv_heads} of {shape.n_heads} heads for keys; "
        "train with rmsnorm, rope, swiglu and bias=false (LLaMA, Qwen3), or as gpt2 does"
    )


def config_from_shape(shape: ModelShape, dtype: torch.dtype, bos_id: int | None, eos_id: int | None) -> Config:
    """config.json's content for a shape that `names_for` knows."""
    shared = {
        "dtype": str(dtype).removeprefix("torch."),
        "vocab_size": shape.vocab_size,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "tie_word_embeddings": shape.tie_embeddings,
        "initializer_range": 0.02,
    }
    if shape.norm == "layernorm":
        return shared | {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_positions": shape.context,
            "n_embd": shape.d_model,
            "n_layer": shape.n_layers,
            "n_head": shape.n_heads,
            "n_inner": shape.d_ff,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": shape.norm_eps,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
    rope: Config = {"rope_type": "default"}
    if shape.rope_scaling is not None:
        rope = shape.rope_scaling.model_dump(exclude={"original_context"}) | {
            "rope_type": "llama3",
            "original_max_position_embeddings": shape.rope_scaling.original_context,
        }
    return shared | {
        "architectures": ["Qwen3ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if shape.qk_norm else "llama",
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ff,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.d_head,
        "max_position_embeddings": shape.context,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        # Written twice: transformers 5 reads rope_parameters, transformers 4 and others the two older keys.
        "rope_parameters": rope | {"rope_theta": shape.rope_theta},
        "rope_theta": shape.rope_theta,
        "rope_scaling": rope if shape.rope_scaling is not None else None,
        "attention_bias": shape.bias,
        "mlp_bias": shape.bias,
        "attention_dropout": 0.0,
    }


def shape_from_config(config: Config, origin: Path) -> ModelShape:
    """The shape that a LLaMA, Qwen3 or GPT-2 config.json describes. UserError for what the trunk cannot compute."""
    reader = {"llama": _llama_shape, "qwen3": _qwen3_shape, "gpt2": _gpt2_shape}.get(config.get("model_type", ""))
    if reader is None:
        raise UserError(
            f"{origin}: model_type {config.get('model_type')!r} is not supported; use a llama, qwen3 or gpt2 model"
        )
    try:
        return reader(config, origin)
    except KeyError as error:
        raise UserError(f"{origin}: key {error.args[0]!r} is missing; fetch the file again") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{origin}: {first['loc']}: {first['msg']}; fetch the file again") from None


def _refuse_unless(supported: bool, origin: Path, key: str, value: Any, known: str) -> None:
    if not supported:
        raise UserError(f"{origin}: {key}={value!r} is not supported (known: {known}); use another model")


def _llama_shape(config: Config, origin: Path) -> ModelShape:
    activation = config.get("hidden_act", "silu")
    _refuse_unless(activation in ("silu", "swish"), origin, "hidden_act", activation, "silu")
    bias = bool(config.get("attention_bias", False))
    mlp_bias = bool(config.get("mlp_bias", False))
    _refuse_unless(bias == mlp_bias, origin, "mlp_bias", mlp_bias, "the same as attention_bias")
    rope: Config = (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    _refuse_unless(rope_type in ("default", "llama3"), origin, "rope_type", rope_type, "default, llama3")
    scaling = None
    if rope_type == "llama3":
        scaling = Llama3RopeScaling(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_context=rope["original_max_position_embeddings"],
        )
    return ModelShape.model_validate(
        {
            "vocab_size": config["vocab_size"],
            "n_layers": config["num_hidden_layers"],
            "d_model": config["hidden_size"],
            "n_heads": config["num_attention_heads"],
            "n_kv_heads": config.get("num_key_value_heads"),
            "d_head": config.get("head_dim"),
            "d_ff": config["intermediate_size"],
            "context": config.get("max_position_embeddings", 2048),
            "bias": bias,
            "tie_embeddings": config.get("tie_word_embeddings", False),
            "norm_eps": config.get("rms_norm_eps", 1e-6),
            "rope_theta": rope.get("rope_theta", config.get("rope_theta", 10000.0)),
            "rope_scaling": scaling,
        }
    )


def _qwen3_shape(config: Config, origin: Path) -> ModelShape:
    """LLaMA's shape with norms on queries and keys."""
    sliding = config.get("use_sliding_window", False)
    _refuse_unless(not sliding, origin, "use_sliding_window", sliding, "false")
    return _llama_shape({"head_dim": 128} | config, origin).model_copy(update={"qk_norm": True})


def _gpt2_shape(config: Config, origin: Path) -> ModelShape:
    activation = config.get("activation_function", "gelu_new")
    known = ("gelu_new", "gelu_pytorch_tanh")
    _refuse_unless(activation in known, origin, "activation_function", activation, ", ".join(known))
    for key, plain in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        value = config.get(key, plain)
        _refuse_unless(value == plain, origin, key, value, str(plain).lower())
    d_model = config["n_embd"]
    return ModelShape.model_validate(
        {
            "vocab_size": config["vocab_size"],
            "n_layers": config["n_layer"],
            "d_model": d_model,
            "n_heads": config["n_head"],
            "d_ff": config.get("n_inner") or 4 * d_model,
            "context": config["n_positions"],
            "norm": "layernorm",
            "positions": "learned",
            "feed_forward": "gelu",
            "bias": True,
            "tie_embeddings": config.get("tie_word_embeddings", True),
            "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        }
    )


def huggingface_layout(shape: ModelShape) -> Layout:
    """Parts of every parameter under Hugging Face names."""
    names = names_for(shape)
    assert names is not None
    return layout(shape, names)


def read_json(path: Path) -> Config:
    """A JSON object from a file; UserError names the file where it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a model folder needs it") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); fetch the file again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; fetch the file again")
    return value


class SafetensorsFolder:
    """The tensors of a folder, memory-mapped: `with SafetensorsFolder(path) as tensors: tensors.read(name)`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._readers: dict[str, Callable[[str], Tensor]] = {}
        self._files: dict[str, Path] = {}

    def __enter__(self) -> SafetensorsFolder:
        single, index = self.folder / "model.safetensors", self.folder / "model.safetensors.index.json"
        if single.is_file():
            self._open(single)
        elif index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
                raise UserError(f"{index}: no weight_map; fetch the file again")
            for shard in sorted(set(weight_map.values())):
                if Path(shard).name != shard:
                    raise UserError(f"{index}: shard {shard!r} lies outside the folder; fetch the file again")
                self._open(self.folder / shard)
        elif any(self.folder.glob("*.bin")):
            raise UserError(
                f"{self.folder}: only pickled .bin weights, which can run code when read; convert them to "
                "safetensors (transformers: model.save_pretrained(folder)) and try again"
            )
        else:
            raise UserError(f"{self.folder}: no model.safetensors; give a folder that holds a whole model")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, path: Path) -> None:
        try:
            file = self._stack.enter_context(safe_open(path, framework="pt"))
            keys = list(file.keys())
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; the folder lacks a part of the weights") from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error}); fetch or write it again") from None
        for key in keys:
            self._readers[key] = file.get_tensor
            self._files[key] = path

    def names(self) -> set[str]:
        """Names of all tensors in the folder."""
        return set(self._readers)

    def read(self, name: str) -> Tensor:
        """One tensor. GPT-2 folders exist with and without the `transformer.` prefix; either is found."""
        for known in (name, name.removeprefix("transformer.")):
            if known in self._readers:
                try:
                    return self._readers[known](known)
                except SafetensorError as error:
                    raise UserError(f"{self._files[known]}: tensor {known!r}: {error}; fetch it again") from None
        raise UserError(f"{self.folder}: tensor {name!r} is missing; fetch the folder again")

    def refuse_unread(self, parts_of: Layout) -> None:
        """UserError where the folder holds a weight that the shape has no use for: the model would compute less."""
        known = {part.name for parts in parts_of.values() for part in parts} | {"lm_head.weight"}
        known |= {name.removeprefix("transformer.") for name in known}
        for name in sorted(self.names() - known):
            if not name.endswith(IGNORED_SUFFIXES):
                raise UserError(
                    f"{self._files[name]}: tensor {name!r} has no place in the model of config.json; "
                    "the two do not belong together, or this variant is not supported"
                )
