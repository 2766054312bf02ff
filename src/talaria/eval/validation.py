"""Models and held-out text in, results.csv and continuations-<model>.jsonl out, for runs that have no exam: loss,
perplexity and bits per byte, and how each model goes on with a few openings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console

from talaria.errors import UserError
from talaria.eval.continuations import continue_held_out
from talaria.eval.evaluate import Candidate, Provenance, provenance_of
from talaria.eval.settings import EvalSettings
from talaria.files import atomic_write
from talaria.infer.engine import Engine
from talaria.infer.load import load
from talaria.report.results import ResultRow, write_results
from talaria.tokens.batches import PackedBatches
from talaria.tokens.shards import Shards
from talaria.train.session import on_device
from talaria.train.step import summed_loss


def load_trunk(path: Path) -> Engine:
    """The default: weights that a loss can be summed over."""
    return load(path, compiled=False)


def evaluate_validation(
    settings: EvalSettings,
    models: Sequence[Candidate],
    shards: Path,
    folder: Path,
    seed: int | None = None,
    load_engine: Callable[[Path], Engine] = load_trunk,
) -> None:
    """Score each model on the validation split below `shards`, let it continue some of it, and write both to `folder`.

    The text is read in windows of the model's context, one after the other: a token sees its own document, as far back
    as its window goes. Where fewer than two tokens are held out there is nothing to score: that is said, and the file
    has no rows. Raises UserError where the shards belong to another tokenizer.
    """
    rows: list[ResultRow] = []
    held_out = Shards(shards, "validation")
    if held_out.n_tokens < 2:
        Console(stderr=True).print("nothing to evaluate on: the held-out text has fewer than two tokens; add text")
    for candidate in models if held_out.n_tokens >= 2 else ():
        engine = load_engine(candidate.path)
        loss, n_tokens, n_bytes = held_out_loss(engine, held_out, settings)
        provenance = provenance_of(engine, candidate.path, seed)
        rows += validation_rows(candidate.name, loss, n_tokens, n_bytes, provenance=provenance)
        passages = continue_held_out(engine, held_out, candidate.strategy, seed or 0)
        lines = "".join(json.dumps(passage, ensure_ascii=False) + "\n" for passage in passages)
        atomic_write(folder / f"continuations-{candidate.name}.jsonl", lines)
    write_results(rows, folder / "results.csv")


@torch.inference_mode()
def held_out_loss(engine: Engine, shards: Shards, settings: EvalSettings) -> tuple[float, int, int]:
    """(mean loss in nats a token, tokens scored, bytes of text that they spell).

    Separators between documents are scored as tokens but spell no bytes.
    """
    if shards.vocab_size != engine.tokenizer.vocab_size:
        raise UserError(
            f"the held-out text has a vocabulary of {shards.vocab_size}, the model of {engine.tokenizer.vocab_size}; "
            "evaluate a model on text that its own tokenizer encoded"
        )
    context = engine.context
    rows = max(1, 8192 // context)
    batches = PackedBatches(shards, context, rows, shuffle=False, epochs=1)
    model = engine.trunk
    bytes_of = [len(engine.tokenizer.token_bytes(token)) for token in range(shards.vocab_size)]
    total, n_tokens, n_bytes = 0.0, 0, 0
    for batch in islice(batches, math.ceil(settings.validation_tokens / (rows * context))):
        total += float(summed_loss(model, on_device(batch, model.device), document_attention=True))
        targets_N = batch.targets_BT[batch.loss_mask_BT]
        n_tokens += len(targets_N)
        n_bytes += sum(bytes_of[token] for token in targets_N.tolist())
    return total / n_tokens, n_tokens, n_bytes


def validation_rows(
    model_name: str, loss: float, n_tokens: int, n_bytes: int, *, provenance: Provenance | None = None
) -> list[ResultRow]:
    """Rows for held-out text: `loss` in nats a token over `n_tokens` tokens that spell `n_bytes` bytes of UTF-8.

    Bits per byte compare across tokenizers; loss and perplexity do not.
    """
    if n_tokens <= 0 or n_bytes <= 0:
        raise ValueError("validation text is empty: n_tokens and n_bytes must be positive")
    found = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "bits_per_byte": loss * n_tokens / n_bytes / math.log(2),
    }
    return [
        ResultRow(
            model=model_name,
            **asdict(provenance or Provenance()),
            task="validation",
            task_version="1",
            strategy="plain",
            shots=0,
            metric=metric,
            score=score,
            stderr=None,
            n=n_tokens,
        )
        for metric, score in found.items()
    ]
