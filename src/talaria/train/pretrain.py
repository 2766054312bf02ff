"""Pretraining: token shards in, a model folder out. Resumes from its last checkpoint, bit for bit on CPU."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console

from talaria.errors import UserError
from talaria.model.checkpoint import save_model
from talaria.model.settings import ModelSettings, resolve_shape
from talaria.model.transformer import Transformer
from talaria.tokens.batches import Batch, PackedBatches
from talaria.tokens.shards import Shards
from talaria.tokens.tokenizer import Tokenizer
from talaria.train import parallel
from talaria.train.session import Session
from talaria.train.settings import PlanSettings, PretrainSettings, plan_pretraining


def pretrain(
    settings: PretrainSettings,
    model_settings: ModelSettings,
    tokens: Path,
    seed: int,
    folder: Path,
    predicted: PlanSettings = PlanSettings(),  # noqa: B008 - frozen
) -> None:
    """Train from random weights on the shards and tokenizer below `tokens`; write model/, checkpoints/,
    metrics.jsonl and training.json below `folder`. What was `predicted` of the run is told beside what it does."""
    parallel.start()
    tokenizer = Tokenizer.load(tokens / "tokenizer")
    shards = Shards(tokens / "shards", "train")
    shape = resolve_shape(model_settings, tokenizer.vocab_size)
    plan = plan_pretraining(settings, shape, shards.n_tokens)
    ranks = parallel.world_size()
    if plan.rows % ranks:
        raise UserError(f"{plan.rows} rows a batch do not divide among {ranks} ranks; change pretrain.batch_tokens")
    session = Session(
        "pretrain",
        folder,
        Transformer(shape, torch.Generator().manual_seed(seed)),
        tokenizer,
        PackedBatches(
            shards, plan.context, plan.rows // ranks, seed, parallel.rank(), ranks, data_share=settings.data_share
        ),
        plan,
        settings.optimizer,
        dtype=settings.dtype,
        compile=settings.compile,
        document_attention=settings.document_attention,
        checkpoint_every_seconds=settings.checkpoint_every_seconds,
        seed=seed,
        predicted=predicted,
    )
    validates = Shards(tokens / "shards", "validation").n_tokens >= 2
    if not validates and parallel.rank() == 0:
        Console(stderr=True).print("no validation: the held-out text has fewer than two tokens")
    with session.meter:
        while not session.finished:
            session.advance(measure_noise=_every(settings.noise_scale_every_steps, session.step))
            if validates and (session.finished or _every(settings.validate_every_steps, session.step)):
                session.validation_loss(_held_out(tokens / "shards", plan.context, plan.micro_rows, settings))
            session.save_if_due()
    if parallel.rank() == 0:
        save_model(session.model, tokenizer, folder / "model")
    session.close()


def _every(steps: int | None, step: int) -> bool:
    return steps is not None and step % steps == 0


def _held_out(shards: Path, context: int, rows: int, settings: PretrainSettings) -> Iterator[Batch]:
    batches = PackedBatches(Shards(shards, "validation"), context, rows, shuffle=False, epochs=1)
    return islice(batches, max(1, settings.validation_tokens // (rows * context)))
