"""What this machine can train and serve: processor, memory, disk, predictions from probes of the real training step."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from talaria.corpus.files import find_files
from talaria.infer.memory import serving_memory
from talaria.model.checkpoint import load_shape
from talaria.model.device import default_device
from talaria.model.settings import ModelSettings, resolve_shape
from talaria.model.shape import ModelShape, shape_from_depth
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.shards import INDEX, Shards
from talaria.train.cores import rows_at_once
from talaria.train.losses import chunk_logits
from talaria.train.meter import peak_flops
from talaria.train.precision import dtype_name, training_dtype
from talaria.train.settings import PretrainSettings, SftSettings, TrainingPlan, plan_pretraining
from talaria.train.sizing import probe

_DEPTHS = (2, 4, 6, 8, 12)
_PROBED_DEPTHS = (2, 4, 6)
_TABLE_VOCABULARY = 8192
PROGRAM_BYTES = 350_000_000
"""Python and torch themselves, before the first tensor."""
TRAINING_PROGRAM_BYTES = 480_000_000
"""The same with what a first step loads (20 MB), and what reading a corpus and making a tokenizer in the same process
leave (110 MB; none where they were made before)."""
_TOKENS_PER_ENTITY = 2400
"""What the world writes about one of its people, at the demo's vocabulary of 2,048."""
_BYTES_PER_TOKEN = 3.5
SIX_BILLION = ModelShape(
    vocab_size=130_528,
    n_layers=28,
    d_model=4096,
    n_heads=32,
    context=2048,
    norm="layernorm",
    feed_forward="gelu",
    bias=True,
)
"""The size of ChatGLM-6B (Zeng et al. 2023), a known point to read the table of serving by."""


@dataclass(frozen=True)
class _Row:
    """A model and how it would be trained; `tokens` is None where the size of the data is not known."""

    name: str
    shape: ModelShape
    plan: TrainingPlan
    tokens: int | None
    pretrain: PretrainSettings


def examine(
    model: ModelSettings | None = None,
    pretrain: PretrainSettings | None = None,
    tokenizer: TokenizerSettings | None = None,
    sft: SftSettings | None = None,
    data_tokens: int | None = None,
) -> Group:
    """The machine, then a table of training and one of serving, of the recipe's model (without [pretrain], of
    `sft.base`) or of some depths.

    `data_tokens` is the size of the training split (`estimate_data_tokens`); [pretrain] needs it if it counts epochs.
    """
    if model is None:
        shapes = {f"depth {depth}": shape_from_depth(depth, _TABLE_VOCABULARY, context=256) for depth in _DEPTHS}
        rows = [_row(name, shape, PretrainSettings(), None) for name, shape in shapes.items()]
    elif pretrain is None and sft is not None and sft.base is not None:
        shape = load_shape(Path(sft.base))
        context = min(sft.context or shape.context, shape.context)
        settings = PretrainSettings(
            context=context,
            epochs=sft.epochs,
            batch_tokens=sft.batch_tokens or 8 * context,
            micro_batch_tokens=sft.micro_batch_tokens,
            optimizer=sft.optimizer,
            dtype=sft.dtype,
        )
        rows = [_row("sft.base", shape, settings, None)]
    else:
        shape = resolve_shape(model, (tokenizer or TokenizerSettings()).vocab_size)
        rows = [_row("recipe", shape, pretrain or PretrainSettings(), data_tokens)]
    table = Table(title="Training on this machine", title_justify="left", box=SIMPLE)
    for column in ("model", "parameters", "tokens", "batch", "memory", "disk", "tokens/s", "time"):
        table.add_column(column, justify="left" if column == "model" else "right")
    rate_of_flops = 0.0
    for row in rows:
        shape, plan = row.shape, row.plan
        if model is not None or shape.n_layers in _PROBED_DEPTHS:
            n = min(plan.rows, max(1, 4096 // plan.context))
            settings = row.pretrain
            micro_rows = min(plan.micro_rows, n)
            rate = n * plan.context / probe(shape, n, plan.context, micro_rows, settings.optimizer, settings.dtype)
            rate_of_flops = rate * shape.flops_per_token(plan.context)
            shown = f"{rate:,.0f}"
        else:
            # Larger ones are not probed: they reach the FLOP rate of the largest probed, or more.
            rate = rate_of_flops / shape.flops_per_token(plan.context)
            shown = f"~{rate:,.0f}"
        memory = TRAINING_PROGRAM_BYTES + training_bytes(shape, plan.micro_rows, plan.context, row.pretrain)
        table.add_row(
            row.name,
            _short(shape.n_params()),
            "unknown" if row.tokens is None else _short(row.tokens),
            _short(plan.batch_tokens),
            _gigabytes(memory),
            _gigabytes(disk_bytes(shape, row.tokens or 0)),
            shown,
            "unknown" if row.tokens is None else _duration(row.tokens / rate),
        )
    note = Text("tokens/s: measured now with the real step; ~ scaled from the row above.\n")
    served = {row.name: row.shape for row in rows} | ({"6B": SIX_BILLION} if model is None else {})
    return Group(_machine(), table, note, _serving(served))


def _serving(shapes: dict[str, ModelShape]) -> Group:
    """Weights in each of their forms, and what one conversation of the whole context takes beside them."""
    table = Table(title="Serving", title_justify="left", box=SIMPLE, collapse_padding=True, pad_edge=False)
    for column in ("model", "fp32", "bf16", "int8", "int4", "context", "cache", "workspace"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, shape in shapes.items():
        forms = [serving_memory(shape, scheme) for scheme in (None, "int8", "int4")]
        halved = serving_memory(shape, None, dtype="bfloat16")
        weights = (_gigabytes(form.weights) for form in (forms[0], halved, *forms[1:]))
        largest = max(form.workspace for form in forms)
        table.add_row(name, *weights, f"{shape.context:,}", _gigabytes(forms[0].cache), _gigabytes(largest))
    note = (
        "fp32, bf16 (on a GPU, where the cache is halved too), int8, int4: bytes of the weights. Cache: of one "
        "conversation that fills the context. The program itself"
    )
    return Group(table, Text(f"{note} takes {_gigabytes(PROGRAM_BYTES)} more."))


def _row(name: str, shape: ModelShape, settings: PretrainSettings, data_tokens: int | None) -> _Row:
    counts_epochs = settings.tokens is None and settings.epochs is not None
    # Where the data's size is not known, Chinchilla's 20 tokens a parameter give the batch that the plan derives.
    plan = plan_pretraining(settings, shape, data_tokens or 20 * shape.n_params())
    return _Row(name, shape, plan, None if counts_epochs and data_tokens is None else plan.tokens, settings)


def estimate_data_tokens(run: Path, entities: int | None, paths: Sequence[str]) -> int | None:
    """Training tokens of a recipe: counted where `run` has its shards, else estimated from the world's `entities` and
    from the size of the files at `paths`; None where that cannot be told (a data set by name, no corpus at all)."""
    shards = run / "tokenizer" / "shards"
    if (shards / INDEX).is_file():
        return Shards(shards, "train", verify=False).n_tokens
    if any(path.startswith("hf:") for path in paths) or (entities is None and not paths):
        return None
    files = find_files(list(paths))[0] if paths else []
    size = sum(file.stat().st_size for file in files)
    return round(_TOKENS_PER_ENTITY * (entities or 0) + size / _BYTES_PER_TOKEN)


def training_bytes(shape: ModelShape, rows: int, context: int, pretrain: PretrainSettings | None) -> int:
    """Peak bytes of a training step. Logits are held a chunk at a time, so they are taken out of the shape's general
    estimate; and on a CPU a small model's step is taken in parts."""
    settings = pretrain or PretrainSettings()
    dtype = dtype_name(training_dtype(settings.dtype, default_device()))
    if default_device().type != "cpu":
        documents = settings.document_attention
        return training_bytes_on_gpu(shape, rows, context, settings.optimizer.name, dtype, documents)
    rows = rows_at_once(shape, rows, context)
    whole = shape.training_memory_bytes(rows, context, optimizer=settings.optimizer.name, dtype=dtype)
    # A chunk of logits, their exponentials and their gradient, for each core, or a little more at once.
    return whole - 3 * 4 * rows * context * shape.vocab_size + 3 * 4 * (1 << 22)


def training_bytes_on_gpu(
    shape: ModelShape, rows: int, context: int, optimizer: str, dtype: str, documents: bool
) -> int:
    """Peak bytes of tensors in a training step there, `dtype` "bfloat16" or "float32": the steps of an H200
    that tests/train/test_doctor.py lists are told within a tenth. `documents`: attention stays inside them."""
    tokens, is_bf16 = rows * context, dtype == "bfloat16"
    weights = shape.training_memory_bytes(0, context, optimizer=optimizer) + is_bf16 * 2 * shape.n_params()
    # A chunk of logits and their exponentials in fp32, and the gradient in the products' dtype.
    logits = (10 if is_bf16 else 12) * min(chunk_logits("cuda"), tokens * shape.vocab_size)
    activations = (0.96 if is_bf16 else 0.85) * shape.activation_bytes(tokens, dtype)
    if shape.qk_norm and is_bf16:
        # Norms of bf16 activations leave fp32 ones.
        activations += 6.6 * tokens * shape.n_layers * (shape.n_heads + shape.n_kv_heads) * shape.d_head
    if documents:
        # Every layer keeps a mask of its own, as numbers that are added to the scores.
        activations += (2 if is_bf16 else 4) * tokens * context * shape.n_layers
    return round(weights + logits + activations)


def disk_bytes(shape: ModelShape, tokens: int) -> int:
    """The model, one checkpoint (weights and two moments; a second while it is replaced) and two bytes a token."""
    return 4 * shape.n_params() * (1 + 2 * 3) + 2 * tokens


def _machine() -> Text:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = shutil.disk_usage(Path.cwd())
    dtype = training_dtype("auto", default_device())
    lines = [
        f"processor  {platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch uses "
        f"{torch.get_num_threads()} threads, {peak_flops(dtype) / 1e9:,.0f} GFLOP/s in {dtype_name(dtype)}",
        f"GPU        {_gpu()}",
        f"memory     {_gigabytes(memory)}",
        f"disk       {_gigabytes(disk.free)} free at {Path.cwd()}",
        f"python     {platform.python_version()}, torch {torch.__version__}",
    ]
    return Text("\n".join(lines) + "\n")


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none"
    each = torch.cuda.get_device_properties(0)
    return f"{torch.cuda.device_count()} x {each.name}, {_gigabytes(each.total_memory)} each"


def _short(n: int) -> str:
    """From a million on three digits and a unit, so that the table fits a terminal of 80 columns."""
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:,}"


def _gigabytes(n: float) -> str:
    return f"{n / 1e9:,.1f} GB" if n >= 1e9 else f"{n / 1e6:,.0f} MB"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"
