"""A path in, an engine out: a run, a stage, a checkpoint, a Hugging Face folder or a .gguf file.

engine = load("runs/laptop")
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from talaria.errors import UsageError, UserError
from talaria.files import MANIFEST, read_json, sha256
from talaria.infer.engine import Engine
from talaria.model.checkpoint import load_model
from talaria.model.compiled import can_compile, compile_transformer
from talaria.model.device import check_device
from talaria.model.quantized import check_scheme, to_bfloat16
from talaria.model.quantized import quantize as quantize_model
from talaria.model.quantized_folder import is_quantized, load_quantized
from talaria.model.transformer import Transformer
from talaria.run import is_finished

# Stages whose output answers prompts, the last one first.
POLICY_STAGES = ("ppo", "grpo", "dpo", "sft", "pretrain")
COMPILED_PARAMS = 2_000_000_000
"""Larger models are compiled when asked for: their weights are then held twice, as they came and packed for kernels."""


def load(
    path: str | Path,
    quantize: str | None = None,
    *,
    device: str | None = None,
    dtype: str = "float32",
    compiled: bool | None = None,
    max_batch_size: int = 64,
    prefix_cache: bool = True,
) -> Engine:
    """Read a model with its tokenizer and make it ready to generate.

    A run folder gives its last finished stage whose output is a policy. Raises UserError where there is no model, where
    a stage's files are not those it wrote, and where a stage that it was made from was made again since.

    `quantize` is "int8" or "int4": the weights are rounded as they are read (`talaria.model.quantized`). A folder that
    `talaria quantize` wrote is quantized already. Raises UsageError for any other name. `device` is the GPU where there
    is one, if nothing else is said; one that is not there is a UsageError too. `dtype` "bfloat16" halves there what is
    not rounded: weights, activations, keys and values. On a CPU the model is compiled
    (`talaria.model.compiled`) where openvino is installed and it has at most `COMPILED_PARAMS` parameters: several
    times faster, its weights fixed. `compiled=False` keeps the trunk of torch, True insists. `max_batch_size` and
    `prefix_cache` are the engine's.
    """
    scheme = None if quantize is None else check_scheme(quantize)
    where = check_device(device)
    if dtype not in ("float32", "bfloat16"):
        raise UsageError(f"dtype={dtype!r} is unknown; choose float32 or bfloat16")
    if dtype == "bfloat16" and where.type == "cpu":
        raise UsageError("dtype='bfloat16' is for a GPU; on a CPU leave it out, and quantize to 'int8' for less memory")
    found = find_model(Path(path))
    if is_quantized(found):
        if scheme is not None:
            raise UserError(f"{found}: is quantized already; leave quantize out, or give the model it was made from")
        model: Transformer
        model, tokenizer = load_quantized(found, where)
    else:
        half = dtype == "bfloat16" and scheme is None
        model, tokenizer = load_model(found, torch.bfloat16 if half else torch.float32)
        model = model.to(where).eval()
        model = model if scheme is None else quantize_model(model, scheme)
    if dtype == "bfloat16":
        to_bfloat16(model)
    if compiled is None:
        compiled = where.type == "cpu" and can_compile(model.shape) and model.shape.n_params() <= COMPILED_PARAMS
    elif compiled and where.type != "cpu":
        raise UsageError(f"compiled=True with device={where}: models are compiled for a CPU; leave one of them out")
    elif compiled and not can_compile(model.shape):
        raise UserError(
            f"{found}: cannot be compiled; it needs openvino (pip install 'talaria-lm[serve]') and a model without "
            "token shift and n-gram embeddings"
        )
    try:
        runs = compile_transformer(model) if compiled else model
    except UserError as error:
        raise UserError(f"{found}: {error}") from None
    return Engine(runs, tokenizer, max_batch_size=max_batch_size, prefix_cache=prefix_cache)


def find_model(path: Path) -> Path:
    """The model folder or .gguf file that `path` means."""
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise UserError(f"{path}: not a model; give a run folder, a model folder or a .gguf file")
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder, model folder or .gguf file")
    if _is_model(path):
        _check_training_checkpoint(path)
        return path
    for stage in (*_later_rounds(path), *POLICY_STAGES):
        if is_finished(path / stage):
            return _stage_model(path / stage)
    begun = [stage for stage in POLICY_STAGES if (path / stage).is_dir() or (path / f"{stage}.partial").is_dir()]
    if begun:
        names = " and ".join(begun)
        raise UserError(f"{path}: {names} not finished yet; resume with `talaria run`, or give a checkpoint folder")
    if (path / "model").is_dir() or (path / "checkpoints").is_dir():
        if not is_finished(path):
            raise UserError(f"{path}: this stage is not finished yet; resume it, or give one of its checkpoint folders")
        return _stage_model(path)
    raise UserError(
        f"{path}: no model here; give a run folder, a folder with config.json and model.safetensors, or a .gguf file"
    )


def _later_rounds(run: Path) -> list[str]:
    """Policies of the run's later rounds, the newest first."""
    numbers = [name.removeprefix("ppo-") for name in os.listdir(run) if name.startswith("ppo-")]
    return [f"ppo-{number}" for number in sorted((int(text) for text in numbers if text.isdigit()), reverse=True)]


def _stage_model(stage: Path) -> Path:
    """The stage's model, if it is the one that the stage wrote and its parents are those that it was made from."""
    model, manifest = stage / "model", read_json(stage / MANIFEST)
    if not _is_model(model):
        raise UserError(f"{stage}: is marked done, but {model} holds no model; run the stage again")
    for file in sorted(file for file in model.rglob("*") if file.is_file()):
        if sha256(file) != manifest["outputs"].get(str(file.relative_to(stage))):
            raise UserError(
                f"{file}: not what stage {stage.name} wrote (hash mismatch); delete {stage} and `talaria run` again"
            )
    for parent, digest in manifest["parents"].items():
        made_anew = stage.parent / parent / MANIFEST
        if made_anew.is_file() and sha256(made_anew) != digest:
            raise UserError(
                f"{stage}: stale, for {parent} was made again since; bring it up to date with `talaria run`"
            )
    return model


def _check_training_checkpoint(folder: Path) -> None:
    """A checkpoint of a training run is a model folder with the hash of its weights in state.json."""
    if (folder / "state.json").is_file():
        weights = folder / "model.safetensors"
        if sha256(weights) != read_json(folder / "state.json").get("sha256", {}).get(weights.name):
            raise UserError(
                f"{weights}: not what was saved (hash mismatch); use another checkpoint or the stage itself"
            )


def _is_model(folder: Path) -> bool:
    weights = ("model.safetensors", "model.safetensors.index.json")
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in weights)
