"""Checkpoints that resume bit for bit: weights, optimizer, data order, random state, what the loop remembers.

    checkpoints/step-000100/{model.safetensors, optimizer.safetensors, state.json}

and, beside them, the configuration and the tokenizer of a trunk, so that its checkpoint is a model folder too: `talaria
chat` reads it. Checkpoints of several models, as of a policy and its value network, are none. Each is written to a
temporary folder and renamed; `state.json` holds the hashes of both tensor files. No pickle.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from talaria.errors import UserError
from talaria.files import atomic_folder, atomic_write, read_json, sha256, to_json
from talaria.model.checkpoint import describe_own_names, save_tensors
from talaria.model.transformer import Transformer
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.optim import load_optimizer_tensors, optimizer_tensors

_TENSOR_FILES = ("model.safetensors", "optimizer.safetensors")


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    tokenizer: Tokenizer,
    optimizers: dict[str, torch.optim.Optimizer],
    state: dict[str, Any],
    keep: int = 1,
) -> None:
    """Write `folder/step-<step>`, then delete all but the newest `keep`. `state` is any JSON value."""
    for leftover in folder.glob(".step-*.tmp"):  # of a save that was killed
        shutil.rmtree(leftover)
    with atomic_folder(folder / f"step-{step:06d}") as target:
        save_tensors(_contiguous(model.state_dict()), target / "model.safetensors")
        save_tensors(_contiguous(dict(optimizer_tensors(model, optimizers))), target / "optimizer.safetensors")
        if isinstance(model, Transformer):
            describe_own_names(model.shape, model.embed.weight.dtype, tokenizer, target)
        record = {
            "step": step,
            "state": state,
            "torch_random_state": torch.get_rng_state().numpy().tobytes().hex(),
            "sha256": {name: sha256(target / name) for name in _TENSOR_FILES},
        }
        atomic_write(target / "state.json", to_json(record))
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first. Leftovers of a killed save begin with a dot and are not among them."""
    return sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def load_checkpoint(
    path: Path, model: nn.Module, optimizers: dict[str, torch.optim.Optimizer]
) -> tuple[int, dict[str, Any]]:
    """Load weights, optimizer and random state in place; return the step and the saved `state`."""
    record = read_json(path / "state.json")
    for name in _TENSOR_FILES:
        if not (path / name).exists() or sha256(path / name) != record["sha256"][name]:
            raise UserError(
                f"{path / name}: not what was saved (hash mismatch); delete {path} to go on from the one before, "
                "or from the start if there is none"
            )
    model.load_state_dict(load_file(path / "model.safetensors"))
    load_optimizer_tensors(model, optimizers, load_file(path / "optimizer.safetensors"))
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(record["torch_random_state"]), dtype=torch.uint8))
    return int(record["step"]), record["state"]


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
