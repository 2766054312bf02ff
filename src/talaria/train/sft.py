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
from talaria.model.checkpoint import load_model, save_model
from talaria.run import atomic_folder
from talaria.tokens.batches import Batch, ConversationBatches, PackedBatches, pack_conversations
from talaria.tokens.chat import encode_chat
from talaria.tokens.conversations import read_conversations
from talaria.tokens.shards import Shards
from talaria.train import parallel
from talaria.train.session import Session
from talaria.train.settings import SftSettings, TrainingPlan


def sft(
    settings: SftSettings, base: Path, conversations: Sequence[Path], replay: Path | None, seed: int, folder: Path
) -> None:
    """Fine-tune the model at `base` on files of `conversations`, with `replay`'s pretraining shards mixed in;
    write model/ (the best), checkpoints/, metrics.jsonl and training.json below `folder`."""
    parallel.start()
    model, tokenizer = load_model(base)
    context = min(settings.context or model.shape.context, model.shape.context)
    messages = [conversation for path in conversations for conversation in read_conversations(path)]
    random.Random(seed).shuffle(messages)
    chats = [encode_chat(tokenizer, conversation) for conversation in messages[: settings.limit]]
    held_out = max(1, round(len(chats) * settings.validation_share))
    if held_out >= len(chats):
        raise UserError(f"{len(chats)} conversations are too few to train and to validate; give more")
    validation = pack_conversations(chats[:held_out], context)
    training = pack_conversations(chats[held_out:], context)

    ranks, rank = parallel.world_size(), parallel.rank()
    rows = max(1, round((settings.batch_tokens or 8 * context) / context / ranks))
    replay_rows = round(rows * settings.replay_share) if replay else 0
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
        if replay and replay_rows
        else None,
    )
    session = Session(
        "sft",
        folder,
        model,
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
        best = session.memory.get("best_loss")
        if best is not None and not loss < best:
            session.memory["worse_in_a_row"] += 1
            return
        session.memory.update(best_loss=loss, best_step=session.step, worse_in_a_row=0)
        if rank == 0:
            with atomic_folder(folder / "model") as target:
                save_model(model, tokenizer, target)

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
    session.close(
        **session.memory,
        stopped_early=not session.finished,
        conversations=len(chats) - held_out,
        conversations_held_out=held_out,
        conversations_truncated=training.n_truncated,
        conversations_dropped=training.n_dropped,
    )


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


def _is_stuck(memory: dict[str, Any], patience: int | None) -> bool:
    return patience is not None and memory["worse_in_a_row"] >= patience
