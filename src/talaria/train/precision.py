"""The dtype of a training run's matrix products. Weights, optimizer, norms and losses are fp32 with either."""

from __future__ import annotations

import torch


def training_dtype(name: str, device: torch.device) -> torch.dtype:
    """float32 or bfloat16 for a recipe's `dtype`; "auto" is bfloat16 where `device` multiplies it faster."""
    if name == "auto":
        return torch.bfloat16 if _has_fast_bfloat16(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def dtype_name(dtype: torch.dtype) -> str:
    """As recipes write it."""
    return str(dtype).removeprefix("torch.")


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
