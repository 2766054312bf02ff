"""What this machine can train: processor, memory, disk, and predictions from short probes of the real training step."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from talaria.model.settings import ModelSettings, resolve_shape
from talaria.model.shape import ModelShape, shape_from_depth
from talaria.tokens.settings import TokenizerSettings
from talaria.train.meter import peak_flops
from talaria.train.settings import PretrainSettings, plan_pretraining
from talaria.train.sizing import probe

_DEPTHS = (2, 4, 6, 8, 12)
_PROBED_DEPTHS = (2, 4, 6)
_TABLE_VOCABULARY = 8192
_PROGRAM_BYTES = 350_000_000
"""Python and torch themselves, before the first tensor."""


def examine(
    model: ModelSettings | None = None,
    pretrain: PretrainSettings | None = None,
    tokenizer: TokenizerSettings | None = None,
) -> Group:
    """The machine, then one row for the recipe's model, or one for each depth of the dial."""
    if model is not None:
        vocab_size = (tokenizer or TokenizerSettings()).vocab_size
        shapes = {"recipe": resolve_shape(model, vocab_size)}
    else:
        shapes = {f"depth {depth}": shape_from_depth(depth, _TABLE_VOCABULARY, context=256) for depth in _DEPTHS}
    table = Table(title="Training on this machine", title_justify="left")
    for column in ("model", "parameters", "tokens", "batch", "memory", "disk", "tokens/s", "time"):
        table.add_column(column, justify="left" if column == "model" else "right")
    rate_of_flops = 0.0
    for name, shape in shapes.items():
        plan = plan_pretraining(pretrain or PretrainSettings(), shape, data_tokens=20 * shape.n_params())
        if model is not None or int(name.split()[1]) in _PROBED_DEPTHS:
            rows = min(plan.rows, max(1, 4096 // plan.context))
            rate = rows * plan.context / probe(shape, rows, plan.context, min(plan.micro_rows, rows))
            rate_of_flops = rate * shape.flops_per_token(plan.context)
            shown = f"{rate:,.0f}"
        else:
            # Larger ones are not probed: they reach the FLOP rate of the largest probed, or more.
            rate = rate_of_flops / shape.flops_per_token(plan.context)
            shown = f"~{rate:,.0f}"
        memory = _PROGRAM_BYTES + training_bytes(shape, plan.micro_rows, plan.context, pretrain)
        table.add_row(
            name,
            f"{shape.n_params():,}",
            f"{plan.tokens:,}",
            f"{plan.batch_tokens:,}",
            _gigabytes(memory),
            _gigabytes(disk_bytes(shape, plan.tokens)),
            shown,
            _duration(plan.tokens / rate),
        )
    return Group(_machine(), table, Text("tokens/s: measured now with the real step; ~ scaled from the row above."))


def training_bytes(shape: ModelShape, rows: int, context: int, pretrain: PretrainSettings | None) -> int:
    """Peak bytes of a training step; the logits are held a chunk at a time, so they are taken out of the shape's
    general estimate."""
    settings = pretrain or PretrainSettings()
    whole = shape.training_memory_bytes(rows, context, optimizer=settings.optimizer.name, dtype=settings.dtype)
    return whole - 3 * 4 * rows * context * shape.vocab_size + 3 * 4 * (1 << 22)


def disk_bytes(shape: ModelShape, tokens: int) -> int:
    """The model, one checkpoint (weights and two moments; a second while it is replaced) and two bytes a token."""
    return 4 * shape.n_params() * (1 + 2 * 3) + 2 * tokens


def _machine() -> Text:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = shutil.disk_usage(Path.cwd())
    lines = [
        f"processor  {platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch uses "
        f"{torch.get_num_threads()} threads, {peak_flops() / 1e9:,.0f} GFLOP/s in fp32",
        f"GPU        {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}",
        f"memory     {_gigabytes(memory)}",
        f"disk       {_gigabytes(disk.free)} free at {Path.cwd()}",
        f"python     {platform.python_version()}, torch {torch.__version__}",
    ]
    return Text("\n".join(lines) + "\n")


def _gigabytes(n: float) -> str:
    return f"{n / 1e9:,.1f} GB" if n >= 1e9 else f"{n / 1e6:,.0f} MB"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"
