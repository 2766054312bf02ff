"""Metadata and tensors in, a GGUF file out: version 3, little-endian; `talaria.model.gguf` reads it back.

    write_gguf(path, {"general.architecture": "llama", ...}, {"token_embd.weight": (weight, "Q8_0"), ...})

Tensors are written one after another, each turned into its bytes only then. Layout as in
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talaria.errors import UserError
from talaria.model.gguf import TENSOR_TYPES

ALIGNMENT = 32
_NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}
# Python's types in the metadata: bool, int as uint32, float as float32, str; in a list int as int32.
_BOOL, _UINT32, _INT32, _FLOAT32, _STRING, _ARRAY = 7, 4, 5, 6, 8, 9


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[NDArray[np.float32], str]]) -> None:
    """Write the file under a temporary name beside `path`, synced and renamed once it is whole.

    `tensors`: name to (fp32 values with rows first, "F32" | "F16" | "Q8_0"). Q8_0 wants rows of a multiple of 32.
    Raises UserError for a value that F16 cannot hold.
    """
    header = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    header += [_string(key) + _value(value) for key, value in metadata.items()]
    offset = 0
    for name, (values, kind) in tensors.items():
        block = TENSOR_TYPES[_NUMBERS[kind]]
        assert values.shape[-1] % block.elements == 0, (
            f"{name}: rows of {values.shape[-1]} do not fill blocks of {kind}"
        )
        dims = struct.pack(f"<I{values.ndim}Q", values.ndim, *reversed(values.shape))
        header.append(_string(name) + dims + struct.pack("<IQ", _NUMBERS[kind], offset))
        offset += _aligned(values.size // block.elements * block.bytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            start = b"".join(header)
            file.write(start.ljust(_aligned(len(start)), b"\0"))
            for name, (values, kind) in tensors.items():
                data = encode(values, kind, name)
                file.write(data)
                file.write(b"\0" * (_aligned(len(data)) - len(data)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def encode(values: NDArray[np.float32], kind: str, name: str = "the tensor") -> bytes:
    """A tensor's bytes. Q8_0 (ggml's quantize_row_q8_0): for each 32 values an fp16 scale d = max|x| / 127 and the
    signed bytes round(x / d), half away from zero, divided by d before it is rounded to fp16."""
    if kind == "F32":
        return values.astype("<f4").tobytes()
    if kind == "F16":
        if np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
            raise UserError(f"{name}: holds a number beyond 65,504, the largest of F16; export with --type f32")
        return values.astype("<f2").tobytes()
    assert kind == "Q8_0"
    blocks = values.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    scaled = blocks * inverse
    steps = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    return np.concatenate([scale.astype("<f2").view(np.uint8), steps.view(np.uint8)], axis=1).tobytes()


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    assert isinstance(value, list)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    return struct.pack(f"<IIQ{len(value)}i", _ARRAY, _INT32, len(value), *value)
