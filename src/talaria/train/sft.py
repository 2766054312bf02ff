"""Supervised fine-tuning: a model and conversations in, a model folder out. Only the assistant's tokens count.

Rows of the pretraining text may be mixed in against forgetting (`replay_share`); the best model by held-out loss is
kept, and training may stop early.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from talaria.errors import UserError
from talaria.files import atomic_folder, atomic_write, read_json, to_json
from talaria.model.checkpoint import load_model, save_model
from talaria.model.lora import add_lora, merged_copy
from talaria.model.transformer import Transformer
from talaria.tokens.batches import Batch, ConversationBatches, PackedBatches, pack_conversations
from talaria.tokens.chat import encode_chat
from talaria.tokens.conversations import read_conversations
from talaria.tokens.shards import Shards
from talaria.tokens.tokenizer import Tokenizer
from talaria.tokens.vocabulary import CONTROL_WORDS, DOCUMENT, END_OF_TURN
from talaria.train import parallel
from talaria.train.session import Session
from talaria.train.settings import SftSettings, TrainingPlan


def sft(
    settings: SftSettings, base: Path, conversations: Sequence[Path], replay: Path | None, seed: int, folder: Path
) -> None:
    """Fine-tune the model at `base` on files of `conversations`, with `replay`'s pretraining shards mixed in;
    write model/ (the best), checkpoints/, metrics.jsonl and training.json below `folder`. Of no epochs `base` is the
    model, as it is."""
    parallel.start()
    model, tokenizer = load_model(base)
    if settings.base is None:
        name_control_tokens(model, tokenizer)
    if settings.epochs == 0:
        if parallel.rank() == 0:
            _take_over(model, tokenizer, base.parent / "training.json", seed, folder)
        parallel.barrier()
        return
    if settings.lora is not None:
        add_lora(model, settings.lora.rank, settings.lora.alpha, torch.Generator().manual_seed(seed))
    context = min(settings.context or model.shape.context, model.shape.context)
    messages = [conversation for path in conversations for conversation in read_conversations(path)]
    random.Random(seed).shuffle(messages)
    encoded = [encode_chat(tokenizer, conversation) for conversation in messages[: settings.limit]]
    # One without a counted token inside the context teaches nothing and would make an empty validation.
    chats = [chat for chat in encoded if any(chat.loss_mask[1 : context + 1])]
    held_out = max(1, round(len(chats) * settings.validation_share))
    if held_out >= len(chats):
        raise UserError(
            f"{len(chats)} of {len(encoded)} conversations have an answer that begins within the context of {context} "
            "tokens, too few to train and to validate; give more, or a longer sft.context"
        )
    validation = pack_conversations(chats[:held_out], context)
    training = pack_conversations(chats[held_out:], context)

    ranks, rank = parallel.world_size(), parallel.rank()
    rows = max(1, round((settings.batch_tokens or 8 * context) / context / ranks))
    replay_rows = _replay_rows(settings, rows, context * ranks, replay)
    chat_rows = rows - replay_rows
    plan = TrainingPlan(
        context=context,
        rows=rows * ranks,
        micro_rows=max(1, min(rows, settings.micro_batch_tokens // context)),
        steps=math.ceil(settings.epochs * len(training.inputs_RT) / (chat_rows * ranks)),
        learning_rate=settings.optimizer.learning_rate or 2e-5,
    )
    batches = MixedBatches(
        ConversationBatches(training, chat_rows, seed, rank, ranks),
        PackedBatches(Shards(replay, "train"), context, replay_rows, seed + 1, rank, ranks)
        if replay is not None and replay_rows
        else None,
    )
    session = Session(
        "sft",
        folder,
        model,
        tokenizer,
        batches,
        plan,
        settings.optimizer,
        dtype=settings.dtype,
        compile=settings.compile,
        document_attention=True,
        checkpoint_every_seconds=settings.checkpoint_every_seconds,
        seed=seed,
    )

    def validate() -> None:
        """Score the held-out conversations; keep the model if it is the best so far."""
        loss = session.validation_loss(ConversationBatches(validation, plan.micro_rows, shuffle=False, epochs=1))
        if settings.keep_validated and rank == 0:
            with atomic_folder(folder / "validated" / f"step-{session.step:06d}") as target:
                save_model(merged_copy(model), tokenizer, target)
        best = session.memory.get("best_loss")
        if best is not None and not loss < best:
            session.memory["worse_in_a_row"] += 1
            return
        session.memory.update(best_loss=loss, best_step=session.step, worse_in_a_row=0)
        if rank == 0:
            with atomic_folder(folder / "model") as target:
                save_model(merged_copy(model), tokenizer, target)

    every = settings.validate_every_steps or max(1, plan.steps // 10)
    with session.meter:
        if session.step == 0:
            validate()
            session.memory["start_loss"] = session.memory["best_loss"]
        while not session.finished and not _is_stuck(session.memory, settings.patience):
            session.advance()
            if session.finished or session.step % every == 0:
                validate()
            session.save_if_due()
    cost = base.parent / "training.json"
    session.close(
        read_json(cost) if cost.is_file() else {},
        **session.memory,
        stopped_early=not session.finished,
        conversations=len(chats) - held_out,
        conversations_held_out=held_out,
        conversations_truncated=training.n_truncated,
        conversations_dropped=len(encoded) - len(chats),
    )


def _take_over(model: Transformer, tokenizer: Tokenizer, cost: Path, seed: int, folder: Path) -> None:
    """The model as it is, for one that was fine-tuned elsewhere. It costs nothing more; what it did cost is None where
    no training.json beside it tells."""
    with atomic_folder(folder / "model") as target:
        save_model(model, tokenizer, target)
    before = read_json(cost) if cost.is_file() else {}
    totals = {key: before.get(key) for key in ("tokens_total", "flops_total")}
    own = {"params": model.shape.n_params(), "steps": 0, "positions": 0, "tokens": 0, "flops": 0, "seed": seed}
    atomic_write(folder / "training.json", to_json(own | totals))


@torch.no_grad()
def name_control_tokens(model: Transformer, tokenizer: Tokenizer) -> None:
    """Begin user and assistant as the means of the words that stand for them, and the end of a turn as a document's.

    Pretraining text holds none of these control tokens, and the softmax pushes all that never comes the same way: where
    the tables are tied they would reach fine-tuning as one vector. A mean of known embeddings is a usual beginning of a
    new token (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models"); of words with its sense
    it also tells the model what it knows of turns in plain text. Words that the vocabulary never learned are left out.
    """
    ids = tokenizer.special_ids
    if END_OF_TURN not in ids:  # a vocabulary without control tokens
        return
    like = {token: _learned(tokenizer, words) for token, words in CONTROL_WORDS.items()}
    like[END_OF_TURN] = [ids[DOCUMENT]]
    for token, rows in like.items():
        if rows:
            for table in {model.embed.weight, model.head_weight()}:
                table[ids[token]] = table[rows].mean(dim=0)


def _learned(tokenizer: Tokenizer, alternatives: Sequence[str]) -> list[int]:
    """Ids of those words that have no more tokens than characters: others fall into bytes that text never had."""
    found: list[int] = []
    for words in alternatives:
        try:
            ids = tokenizer.encode(words)
        except UserError:  # a character vocabulary that lacks one of them
            continue
        found += ids if len(ids) <= len(words) else []
    return found


class MixedBatches:
    """Rows of conversations, then rows of pretraining text, in every batch."""

    def __init__(self, conversations: ConversationBatches, replay: PackedBatches | None) -> None:
        self._conversations, self._replay = conversations, replay

    def __next__(self) -> Batch:
        chat = next(self._conversations)
        if self._replay is None:
            return chat
        return Batch(*(torch.cat(pair) for pair in zip(chat, next(self._replay), strict=True)))

    def state(self) -> dict[str, Any]:
        return {
            "conversations": self._conversations.state(),
            "replay": self._replay.state() if self._replay else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self._conversations.load_state(state["conversations"])
        if self._replay:
            self._replay.load_state(state["replay"])


def _replay_rows(settings: SftSettings, rows: int, tokens_per_row: int, replay: Path | None) -> int:
    """Rows of pretraining text in each rank's `rows`: at least one, and at least one is left to conversations."""
    if not settings.replay_share:
        return 0
    if replay is None:
        raise UserError("sft.replay_share needs the pretraining text of this run; leave it out where sft.base is given")
    if rows < 2:
        raise UserError(
            f"sft.replay_share needs two rows a batch, one to replay; set sft.batch_tokens to {2 * tokens_per_row} or "
            "more, or sft.context lower"
        )
    return min(rows - 1, max(1, round(rows * settings.replay_share)))


def _is_stuck(memory: dict[str, Any], patience: int | None) -> bool:
    return patience is not None and memory["worse_in_a_row"] >= patience
