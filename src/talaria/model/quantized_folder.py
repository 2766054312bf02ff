"""A quantized trunk and its tokenizer to disk and back, without rounding again. safetensors and JSON, no pickle.

    save_quantized(model, tokenizer, folder)
    model, tokenizer = load_quantized(folder)

config.json has model_type "talaria-quantized", the shape, the scheme and the SHA-256 of model.safetensors. A matrix of
INT4 is stored as `.q` (uint8, two columns a byte, the even one in the low half) and `.grid` (scales and zeros), one of
INT8 as `.weight` and `.scales`: no CPU's own order of bytes, so a folder opens on another machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from talaria.errors import UserError
from talaria.files import sha256
from talaria.model.checkpoint import describe, save_tensors
from talaria.model.interop_huggingface import read_json
from talaria.model.linear import Linear
from talaria.model.quantized import QuantizedTransformer, check_scheme
from talaria.model.quantized_linear import GROUP, Int4Linear, Int8Embedding, Int8Linear
from talaria.model.shape import ModelShape
from talaria.tokens.tokenizer import Tokenizer

MODEL_TYPE = "talaria-quantized"
WEIGHTS = "model.safetensors"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def save_quantized(model: QuantizedTransformer, tokenizer: Tokenizer, folder: Path | str) -> None:
    """Write weights, shape, scheme, tokenizer and stop ids into `folder`, which is made if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, Int4Linear):
            q_NK = module.quantised()
            tensors |= {f"{name}.q": q_NK[:, ::2] | q_NK[:, 1::2] << 4}
            tensors |= {f"{name}.grid": module.grid[:, : module.n_rows]}
        elif isinstance(module, Int8Linear) or (isinstance(module, Int8Embedding) and not _is_tied(name, model.shape)):
            tensors |= {f"{name}.weight": module.weight, f"{name}.scales": module.scales}
        if isinstance(module, Int4Linear | Int8Linear) and module.bias is not None:
            tensors[f"{name}.bias"] = module.bias
    save_tensors({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, folder / WEIGHTS)
    config: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "quantization": {"scheme": model.scheme, "sha256": sha256(folder / WEIGHTS)},
        "talaria": model.shape.model_dump(mode="json", exclude_none=True),
    }
    describe(config, tokenizer, folder)


def is_quantized(path: Path) -> bool:
    """Whether `path` is a folder that `save_quantized` wrote."""
    return path.is_dir() and read_json(path / "config.json").get("model_type") == MODEL_TYPE


def load_quantized(folder: Path | str, device: torch.device | str = "cpu") -> tuple[QuantizedTransformer, Tokenizer]:
    """Read what `save_quantized` wrote. Raises UserError where weights and config.json do not belong together."""
    folder = Path(folder)
    config = read_json(folder / "config.json")
    try:
        shape, stated = ModelShape.model_validate(config["talaria"]), config["quantization"]
        scheme, digest, dtype = check_scheme(stated["scheme"]), stated["sha256"], _DTYPES[config["dtype"]]
    except (KeyError, TypeError, ValidationError, UserError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder / 'config.json'}: not what talaria wrote ({reason}); quantize the model again"
        ) from None
    tensors = _Tensors(folder / WEIGHTS, dtype, device)
    if sha256(folder / WEIGHTS) != digest:
        raise UserError(f"{folder / WEIGHTS}: not what was saved (hash mismatch); quantize the model again")
    model = QuantizedTransformer(shape, scheme)
    V, D = shape.vocab_size, shape.d_model
    model.output = tensors.int8("output", V, D)
    tables = ["embed", *(f"ngram_embeds.{i}" for i in range(shape.ngram_embeddings))]
    for name in tables:
        table = model.output if _is_tied(name, shape) else tensors.int8(name, V, D)
        model.set_submodule(name, Int8Embedding(table.weight, table.scales, dtype))
    if not shape.tie_embeddings:
        del model.unembed
    for name, linear in [(name, module) for name, module in model.named_modules() if isinstance(module, Linear)]:
        model.set_submodule(name, tensors.linear(name, linear))
    rest = {name: tensors.take(name, tuple(p.shape), dtype) for name, p in model.named_parameters()}
    model.load_state_dict(rest, strict=False, assign=True)
    return model.requires_grad_(False).eval(), Tokenizer.load(folder)


class _Tensors:
    """The tensors of one file, each asked for by name, size and dtype."""

    def __init__(self, path: Path, dtype: torch.dtype, device: torch.device | str) -> None:
        self.path, self.dtype = path, dtype
        try:
            self.tensors = load_file(path, device=str(device))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error}); quantize the model again") from None

    def take(self, name: str, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        tensor = self.tensors.get(name)
        if tensor is None or tuple(tensor.shape) != size or tensor.dtype != dtype:
            found = "missing" if tensor is None else f"{list(tensor.shape)} {tensor.dtype}"
            raise UserError(
                f"{self.path}: tensor {name!r} is {found}, expected {list(size)} {dtype}; weights and config.json do "
                "not belong together; quantize the model again"
            )
        return tensor

    def int8(self, name: str, N: int, K: int, bias_N: Tensor | None = None) -> Int8Linear:
        # A file's tensors may begin at any byte, and torch's INT8 kernel crashes the process over weights that do.
        weight_NK = self.take(f"{name}.weight", (N, K), torch.int8).clone()
        return Int8Linear(weight_NK, self.take(f"{name}.scales", (N,), torch.float32), bias_N)

    def linear(self, name: str, like: Linear) -> Int8Linear | Int4Linear:
        N, K = like.out_features, like.in_features
        bias_N = self.take(f"{name}.bias", (N,), self.dtype) if like.bias is not None else None
        if f"{name}.q" not in self.tensors:
            return self.int8(name, N, K, bias_N)
        packed = self.take(f"{name}.q", (N, K // 2), torch.uint8)
        q_NK = torch.stack([packed & 15, packed >> 4], dim=-1).view(N, K)
        return Int4Linear(q_NK, self.take(f"{name}.grid", (K // GROUP, N, 2), torch.bfloat16), bias_N)


def _is_tied(name: str, shape: ModelShape) -> bool:
    """Whether this table is the head's own, and so not stored twice."""
    return name == "embed" and shape.tie_embeddings
