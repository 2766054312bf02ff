"""Model folders: a trunk and its tokenizer to disk and back. safetensors and JSON; nothing here unpickles.

    save_model(model, tokenizer, folder)
    model, tokenizer = load_model(folder_or_gguf_file)

A folder is a Hugging Face folder wherever LLaMA's, Qwen3's or GPT-2's class can express the shape: transformers reads
it as it is. Other shapes are saved as model_type "talaria" with the shape in config.json and the trunk's own names.
"""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from talaria.errors import UserError
from talaria.model import interop_huggingface as huggingface
from talaria.model.layout import Layout, Part, assemble, disassemble
from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer
from talaria.tokens.tokenizer import Tokenizer


def save_model(model: Transformer, tokenizer: Tokenizer, folder: Path | str) -> None:
    """Write weights, shape, tokenizer and stop ids into `folder`, which is made if need be; config.json comes last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shape, dtype = model.shape, next(model.parameters()).dtype
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_tensors(disassemble(_layout(shape), state), folder / "model.safetensors")
    if huggingface.names_for(shape) is None:
        describe_own_names(shape, dtype, tokenizer, folder)
    else:
        describe(huggingface.config_from_shape(shape, dtype, tokenizer.bos_id, tokenizer.eos_id), tokenizer, folder)


def describe_own_names(shape: ModelShape, dtype: torch.dtype, tokenizer: Tokenizer, folder: Path) -> None:
    """Write all of a model folder but its weights, which bear the trunk's own parameter names."""
    config = {
        "architectures": ["TalariaForCausalLM"],
        "model_type": "talaria",
        "dtype": str(dtype).removeprefix("torch."),
        "talaria": shape.model_dump(mode="json", exclude_none=True),
    }
    describe(config, tokenizer, folder)


def describe(config: dict[str, Any], tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer, the stop ids and, last, config.json."""
    tokenizer.save(folder)
    ends: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": sorted(tokenizer.stop_ids),
        "pad_token_id": tokenizer.pad_id,
    }
    _write_json(folder / "generation_config.json", ends)
    _write_json(folder / "config.json", config)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file. A full disk is an OSError that names the file, as it is for every other file."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        told = re.search(r"os error (\d+)", str(error))
        code = int(told[1]) if told else errno.EIO
        raise OSError(code, os.strerror(code) if told else str(error), str(path)) from None


def export_huggingface(model: Transformer, tokenizer: Tokenizer, folder: Path | str) -> None:
    """Write a folder that transformers loads. Raises UserError where no Hugging Face class computes this shape."""
    if huggingface.names_for(model.shape) is None:
        why = huggingface.what_no_class_has(model.shape)
        raise UserError(f"no Hugging Face class computes this model: {why}")
    save_model(model, tokenizer, folder)


def load_model(path: Path | str, dtype: torch.dtype = torch.float32) -> tuple[Transformer, Tokenizer]:
    """Read a model folder (own, LLaMA, Qwen3, GPT-2) or a .gguf file; weights come as `dtype`. Raises UserError."""
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        from talaria.model.interop_gguf import load_gguf

        return load_gguf(path, dtype)
    if path.is_file():
        raise UserError(f"{path}: not a model; give a model folder or a .gguf file")
    if not path.is_dir():
        raise UserError(f"{path}: no such model folder or .gguf file")
    return load_weights(load_shape(path), path, dtype), Tokenizer.load(path)


def load_shape(folder: Path) -> ModelShape:
    """The shape in a model folder's config.json, or in a .gguf file."""
    if folder.suffix == ".gguf" and folder.is_file():
        from talaria.model.interop_gguf import gguf_shape

        return gguf_shape(folder)
    origin = folder / "config.json"
    config = huggingface.read_json(origin)
    if config.get("model_type") != "talaria":
        return huggingface.shape_from_config(config, origin)
    try:
        return ModelShape.model_validate(config.get("talaria"))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{origin}: {first['loc']}: {first['msg']}; save the model again") from None


def load_weights(shape: ModelShape, folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """A trunk of `shape` with the folder's weights."""
    with huggingface.SafetensorsFolder(folder) as tensors:
        if shape.n_layers > len(tensors.names()):
            raise UserError(f"{folder / 'config.json'}: {shape.n_layers} layers, but the folder's weights have fewer")
        model = Transformer(shape, device="meta")
        wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
        # Own names where the configuration says so, or where Hugging Face has none for this shape.
        own = huggingface.read_json(folder / "config.json").get("model_type") == "talaria"
        parts_of = _own_layout(shape) if own else _layout(shape)
        tensors.refuse_unread(parts_of)
        state = assemble(parts_of, wanted, tensors.read, str(folder), dtype)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(True)


def _layout(shape: ModelShape) -> Layout:
    if huggingface.names_for(shape) is not None:
        return huggingface.huggingface_layout(shape)
    return _own_layout(shape)


def _own_layout(shape: ModelShape) -> Layout:
    parameters = Transformer(shape, device="meta").named_parameters()
    return {name: [Part(name, parameter.shape[0])] for name, parameter in parameters}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
