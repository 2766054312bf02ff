"""What this machine can train in a given time: short probes of the real code, extrapolated.

`probe` times optimisation steps of a shape; `plan_own_text` makes a miniature run over a sample of somebody's files,
then picks the depth whose full run fits the time. Predictions hold for this machine at its present load.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from talaria.corpus.build import build_corpus, read_corpus
from talaria.corpus.document import read_documents
from talaria.corpus.settings import CorpusSettings
from talaria.errors import UserError
from talaria.feedback.continuations import write_continuations
from talaria.feedback.settings import ConversationSettings
from talaria.files import atomic_write
from talaria.model.device import default_device
from talaria.model.shape import ModelShape, shape_from_depth
from talaria.model.transformer import Transformer
from talaria.tokens.batches import Batch, pack_conversations
from talaria.tokens.chat import encode_chat
from talaria.tokens.conversations import read_conversations
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.shards import Shards, write_shards
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.allocator import keep_freed_memory
from talaria.train.optim import make_optimizers
from talaria.train.precision import training_dtype
from talaria.train.session import on_device
from talaria.train.settings import OptimizerSettings
from talaria.train.step import StepState, optimisation_step

DEPTHS = (2, 3, 4, 5, 6, 8, 10, 12)
_SAMPLE_BYTES = 2_000_000
_MAX_EPOCHS = 4.0
"""Up to four passes over the same text are worth almost as much as new text (Muennighoff et al. 2023)."""
_TOKENS_PER_PARAMETER = 5.0
"""Fewest training tokens a parameter for a depth to be chosen: a quarter of Chinchilla's, as time is what is short."""
OPTIMIZER = OptimizerSettings(name="muon", learning_rate=1e-2, newton_schulz_steps=3, final_rate=0.0)
"""What the demo trains with, at half its rate, since one's own text may want a larger model."""
REPLAY_SHARE = 0.25
"""Of each batch of fine-tuning."""
_START_SECONDS = 8.0
"""Importing libraries and writing the report."""
_SAMPLED_CONTINUATIONS = 500


@dataclass(frozen=True)
class OwnTextPlan:
    """A run over one's own text that fits the time, with what it is predicted to take."""

    depth: int
    params: int
    vocab_size: int
    context: int
    batch_tokens: int
    tokens: int
    epochs: float
    continuations: int
    corpus_seconds: float
    tokenizer_seconds: float
    pretrain_seconds: float
    rest_seconds: float

    @property
    def seconds(self) -> float:
        return self.corpus_seconds + self.tokenizer_seconds + self.pretrain_seconds + self.rest_seconds


def probe(
    shape: ModelShape,
    rows: int,
    context: int,
    micro_rows: int,
    optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008 - frozen
    dtype: str = "auto",
    steps: int = 4,
) -> float:
    """Seconds of one optimisation step of `rows` x `context` tokens on this machine: the median after one warm-up."""
    device = default_device()
    if device.type == "cpu":
        keep_freed_memory()  # as a training run does
    model = Transformer(shape, torch.Generator().manual_seed(0)).to(device)
    products = training_dtype(dtype, device)
    optimizers = make_optimizers(model, optimizer, 1e-3, products)
    tokens = torch.randint(shape.vocab_size, (rows, context + 1), generator=torch.Generator().manual_seed(0))
    documents = torch.arange(context).expand(rows, -1) // max(1, context // 2)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], documents, torch.ones(rows, context, dtype=torch.bool))
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        optimisation_step(
            model,
            optimizers,
            on_device(batch, device),
            StepState(),
            micro_rows=micro_rows,
            rate_share=1.0,
            max_grad_norm=1.0,
            document_attention=True,
            dtype=products,
        )
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def plan_own_text(folder: Path, minutes: float, context: int = 256, batch_tokens: int = 2048) -> OwnTextPlan:
    """Choose depth and tokens for the texts below `folder`, so that a whole run takes about `minutes`."""
    vocab_size = 4096
    with tempfile.TemporaryDirectory() as scratch:
        size, sampled = _write_sample(folder, Path(scratch) / "sample.jsonl")
        sample = _miniature(Path(scratch), vocab_size, context)
    share = size / sampled
    corpus_seconds, tokenizer_seconds = sample.corpus_seconds * share, sample.tokenizer_seconds * share
    data_tokens = sample.train_tokens * share
    budget = minutes * 60 - corpus_seconds - tokenizer_seconds - _START_SECONDS
    if budget < 30:
        raise UserError(
            f"{folder}: reading and tokenising {size / 1e6:,.0f} MB alone takes about "
            f"{(corpus_seconds + tokenizer_seconds) / 60:.0f} minutes here; give more with --minutes"
        )
    # A tenth of the time goes to fine-tuning and evaluation.
    rows = max(1, batch_tokens // context)
    best: tuple[ModelShape, int, int, float] | None = None
    for depth in DEPTHS:
        shape = shape_from_depth(depth, vocab_size, context)
        step_seconds = probe(shape, rows, context, rows, OPTIMIZER)
        steps = int(min(0.9 * budget / step_seconds, _MAX_EPOCHS * data_tokens / (rows * context)))
        if best is not None and steps * rows * context < _TOKENS_PER_PARAMETER * shape.n_params():
            break
        best = shape, depth, max(steps, 1), step_seconds
    assert best is not None
    shape, depth, steps, step_seconds = best
    conversations_a_step = max(1, rows - max(1, round(rows * REPLAY_SHARE))) / sample.rows_a_conversation
    continuations = int(0.08 * budget / step_seconds * conversations_a_step)
    continuations = max(2, min(max(200, continuations), int(sample.passages * share)))
    sft_seconds = continuations / conversations_a_step * step_seconds
    return OwnTextPlan(
        depth=depth,
        params=shape.n_params(),
        vocab_size=vocab_size,
        context=context,
        batch_tokens=rows * context,
        continuations=continuations,
        tokens=steps * rows * context,
        epochs=steps * rows * context / data_tokens,
        corpus_seconds=corpus_seconds,
        tokenizer_seconds=tokenizer_seconds,
        pretrain_seconds=steps * step_seconds,
        rest_seconds=1.25 * sft_seconds + _START_SECONDS,  # a quarter more for validation and evaluation
    )


def _write_sample(folder: Path, path: Path) -> tuple[int, int]:
    """Write evenly spaced documents, about 2 MB of them; return the bytes of text in all and in the sample."""
    kept: list[tuple[int, bytes]] = []
    size, stride, n_documents = 0, 1, 0
    for n_documents, document in enumerate(read_documents([str(folder)]), start=1):
        size += len(document.text.encode())
        if n_documents % stride == 0:
            kept.append((n_documents, json.dumps({"text": document.text}).encode() + b"\n"))
        if sum(len(row) for _, row in kept) > 2 * _SAMPLE_BYTES and len(kept) > 1:
            stride *= 2
            kept = [(number, row) for number, row in kept if number % stride == 0]
    if not kept:
        raise UserError(f"{folder}: no text found; put .txt, .md, .jsonl or .parquet files there")
    atomic_write(path, b"".join(row for _, row in kept))
    return size, sum(len(json.loads(row)["text"].encode()) for _, row in kept)


@dataclass(frozen=True)
class _Sample:
    """What the stages before training took for the sample and made of it."""

    corpus_seconds: float
    tokenizer_seconds: float
    train_tokens: int
    passages: int
    """At most so many conversations can be made of its text."""
    rows_a_conversation: float
    """Of a training batch: Chinese passages fill a row each, of English ones two or three share one."""


def _miniature(scratch: Path, vocab_size: int, context: int) -> _Sample:
    """Run the stages before training over the sample."""
    start = time.perf_counter()
    build_corpus(CorpusSettings(paths=[str(scratch / "sample.jsonl")]), scratch / "corpus")
    corpus_seconds = time.perf_counter() - start
    start = time.perf_counter()
    settings = TokenizerSettings(vocab_size=vocab_size)
    tokenizer = Tokenizer.train((document.text for document in read_corpus(scratch / "corpus")), settings)
    write_shards(read_corpus(scratch / "corpus"), tokenizer, scratch / "shards", settings)
    tokenizer_seconds = time.perf_counter() - start
    passage = ConversationSettings(continuations=_SAMPLED_CONTINUATIONS)
    span = passage.opening_characters + passage.answer_characters
    passages = sum(math.ceil(len(document.text) / span) for document in read_corpus(scratch / "corpus"))
    write_continuations(read_corpus(scratch / "corpus"), passage, scratch / "conversations.jsonl")
    chats = [encode_chat(tokenizer, messages) for messages in read_conversations(scratch / "conversations.jsonl")]
    rows = max(1, len(pack_conversations(chats, context).inputs_RT))
    train_tokens = Shards(scratch / "shards", "train").n_tokens
    return _Sample(corpus_seconds, tokenizer_seconds, train_tokens, passages, rows / len(chats))
