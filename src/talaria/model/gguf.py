"""GGUF files: header, metadata and tensors, memory-mapped. A file goes in, numbers and numpy arrays come out.

Read: versions 2 and 3, little-endian, with tensors in F32, F16, BF16, Q8_0, Q4_0 and Q4_1. The layout is that of
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count and length is checked against the file's size
before it is used, so a cut or invented file is a one-line UserError and never a huge allocation.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talaria.errors import UserError

# Value types of the metadata: number -> struct code.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorType:
    """How a tensor is stored: in blocks of so many elements and bytes."""

    name: str
    elements: int
    bytes: int


# Numbers of ggml's enum. Those above the line are read; the others are known by name for the error message.
TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    8: TensorType("Q8_0", 32, 34),
    30: TensorType("BF16", 1, 2),
}
UNREAD_TYPES = {6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K"}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file. `shape` is in numpy's order (rows first), GGUF's reversed."""

    shape: tuple[int, ...]
    type: TensorType
    start: int

    @property
    def n_bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) // self.type.elements * self.type.bytes


class GGUFFile:
    """`metadata` (key to number, string, bool or list) and `tensors` (name to TensorInfo) of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except ValueError:  # an empty file cannot be mapped
            raise self._broken("it is empty") from None
        self._at = 0
        magic = self._take(4)
        if magic != b"GGUF":
            raise UserError(f"{path}: not a GGUF file (it begins with {magic!r}); give a .gguf file")
        (version,) = self._unpack("I")
        if version not in (2, 3):
            raise UserError(
                f"{path}: GGUF version {version} is not supported (known: 2 and 3, little-endian); convert it anew"
            )
        n_tensors, n_entries = self._unpack("QQ")
        # The smallest entry is a key of no letters, a type and one byte; the smallest tensor has a name, 0 dimensions.
        self._check_count(n_entries, 13, "metadata entries")
        self.metadata: dict[str, Any] = {}
        for _ in range(n_entries):
            key = self._string()
            self.metadata[key] = self._value(self._unpack("I")[0], key)
        self._check_count(n_tensors, 24, "tensors")
        self.tensors = self._tensor_infos(n_tensors)

    def _broken(self, what: str) -> UserError:
        return UserError(f"{self.path}: not a whole GGUF file: {what}; fetch it again")

    def _take(self, n_bytes: int) -> bytes:
        if self._at + n_bytes > len(self._data):
            raise self._broken(f"it ends at byte {len(self._data)}, in the middle of its header")
        self._at += n_bytes
        return self._data[self._at - n_bytes : self._at]

    def _unpack(self, codes: str) -> tuple[Any, ...]:
        return struct.unpack("<" + codes, self._take(struct.calcsize("<" + codes)))

    def _check_count(self, count: int, smallest: int, what: str) -> None:
        if count * smallest > len(self._data) - self._at:
            raise self._broken(f"it announces {count} {what}, more than its {len(self._data)} bytes can hold")

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        self._check_count(length, 1, "letters of one string")
        return self._take(length).decode("utf-8", errors="replace")

    def _value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._broken(f"metadata {key!r} has the unknown type {kind}")
        item_kind, length = self._unpack("IQ")
        if item_kind in _SCALARS:
            self._check_count(length, struct.calcsize("<" + _SCALARS[item_kind]), f"items in {key!r}")
            return list(self._unpack(f"{length}{_SCALARS[item_kind]}"))
        if item_kind != _STRING:
            raise self._broken(f"metadata {key!r} is an array of the unknown type {item_kind}")
        self._check_count(length, 8, f"strings in {key!r}")
        return [self._string() for _ in range(length)]

    def _tensor_infos(self, n_tensors: int) -> dict[str, TensorInfo]:
        raw = []
        for _ in range(n_tensors):
            name = self._string()
            (n_dims,) = self._unpack("I")
            if n_dims > 4:
                raise self._broken(f"tensor {name!r} has {n_dims} dimensions")
            dims = self._unpack(f"{n_dims}Q")
            raw.append((name, tuple(reversed(dims)), *self._unpack("IQ")))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
            raise self._broken(f"general.alignment is {alignment!r}")
        data_start = -(-self._at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, number, offset in raw:
            if number not in TENSOR_TYPES:
                raise UserError(
                    f"{self.path}: tensor {name!r} is stored as {UNREAD_TYPES.get(number, f'type {number}')}; known "
                    f"are {', '.join(kind.name for kind in TENSOR_TYPES.values())}: choose such a file of this model"
                )
            info = TensorInfo(shape, TENSOR_TYPES[number], data_start + offset)
            if name in tensors:
                raise self._broken(f"tensor {name!r} is there twice")
            if not shape or shape[-1] % info.type.elements or offset % alignment:
                raise self._broken(f"tensor {name!r} has an impossible size {list(shape)} or offset {offset}")
            if info.start + info.n_bytes > len(self._data):
                raise self._broken(f"tensor {name!r} ends behind the end of the file at byte {len(self._data)}")
            tensors[name] = info
        return tensors

    def stored(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes as they are in the file, without a copy."""
        if name not in self.tensors:
            raise UserError(f"{self.path}: tensor {name!r} is missing; fetch or convert the file again")
        info = self.tensors[name]
        return np.frombuffer(self._data, np.uint8, info.n_bytes, info.start)

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor as fp32, dequantised where it is stored in blocks."""
        raw = self.stored(name)
        info = self.tensors[name]
        return dequantise(raw, info.type).reshape(info.shape)


def dequantise(raw: NDArray[np.uint8], kind: TensorType) -> NDArray[np.float32]:
    """fp32 elements (n,) of stored bytes.

    A block of 32 has an fp16 scale d: Q8_0 is d q with signed bytes; Q4_0 is d (q - 8) and Q4_1 is d q + m with
    nibbles, the low ones of 16 bytes first, then the high ones.
    """
    if kind.name == "F32":
        return raw.view("<f4").astype(np.float32)
    if kind.name == "F16":
        return raw.view("<f2").astype(np.float32)
    if kind.name == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    blocks = raw.reshape(-1, kind.bytes)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    if kind.name == "Q8_0":
        return (blocks[:, 2:].view(np.int8) * scale).reshape(-1)
    packed = blocks[:, -16:]
    nibbles = np.concatenate([packed & 15, packed >> 4], axis=1)
    if kind.name == "Q4_0":
        return ((nibbles.astype(np.int8) - 8) * scale).reshape(-1)
    minimum = blocks[:, 2:4].copy().view("<f2").astype(np.float32)
    values = nibbles * scale
    values += minimum
    return values.reshape(-1)
