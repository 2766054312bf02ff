"""Talaria: raw text to an aligned, served, measured assistant in one verified run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from talaria.infer.engine import Engine

__all__ = ["load"]


def load(
    path: str | Path,
    quantize: str | None = None,
    device: str | None = None,
    compiled: bool | None = None,
    dtype: str = "float32",
) -> Engine:
    """Load a run, a checkpoint, a Hugging Face folder or a .gguf file as an engine that generates and scores text.

    `quantize`: "int8" or "int4"; `device`: "cpu", "cuda", ..., the GPU where there is one if nothing is said;
    `compiled=False` keeps torch's trunk where a CPU would run a compiled one; `dtype="bfloat16"` halves a GPU's memory.
    """
    from talaria.infer.load import load as load_engine

    return load_engine(Path(path), quantize, device=device, dtype=dtype, compiled=compiled)
