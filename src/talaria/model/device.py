"""Where a model's weights lie."""

from __future__ import annotations

import torch

from talaria.errors import UsageError


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_device(name: str | None) -> torch.device:
    """The device of that name, the default for None. Raises UsageError where this machine has none such."""
    if name is None:
        return default_device()
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    known = ["cpu", *(["cuda", *gpus] if gpus else [])]
    if name not in known:
        raise UsageError(f"device={name!r}: this machine has {', '.join(known)}; choose one or leave device out")
    return torch.device(name)
