"""What a policy is asked, what it answers, and what that is worth: prompts in, answers and their scores out.

items = read_prompts([folder / "prompts.jsonl"], tokenizer, room)
chosen, completions, answers = answer(sampler(policy), tokenizer, draw_prompts(items, 64, step, seed), 48, seed)
scores_B = reward_of(rewarder, tokenizer, chosen, completions, -1.0, Cut(rows=8))
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talaria.errors import UserError
from talaria.infer.contract import Completion
from talaria.infer.engine import Engine
from talaria.model.compiled import CompiledTransformer, can_compile_live, compile_transformer
from talaria.model.device import default_device
from talaria.model.lora import without_lora
from talaria.model.scalar import ScalarModel
from talaria.model.transformer import Transformer
from talaria.tokens.chat import encode_chat
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.answers import Answers, encode_answer, over_pieces, pad_answers, score, shortest_first
from talaria.train.cores import Cut
from talaria.world.judge import check
from talaria.world.labelers import is_good

SPLITS = "train", "validation", "test"
Policy = Transformer | CompiledTransformer
"""What answers: see `sampler`."""


def read_prompts(
    files: Sequence[Path], tokenizer: Tokenizer, room: int, splits: Sequence[str] = ("train",)
) -> list[dict[str, Any]]:
    """Rows with `messages` that end with a user turn, with their ids; those longer than `room` tokens are left out, and
    those that `talaria prompts` gave another split. A row without a split is one of "train"."""
    items, n_elsewhere = [], 0
    for file in files:
        # Not splitlines, which also cuts at line separators inside a JSON string.
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
                if item["messages"][-1]["role"] != "user":
                    raise ValueError("its last turn is not the user's")
                split = item.get("split") or "train"
                if split not in SPLITS:
                    raise ValueError(f"its split is {split!r}, none of {', '.join(SPLITS)}")
                item["ids"] = encode_chat(tokenizer, item["messages"], add_generation_prompt=True).ids
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(f"{file}:{number}: not a prompt ({error}); write one JSON row with messages") from None
            if split not in splits:
                n_elsewhere += 1
            elif len(item["ids"]) <= room:
                items.append(item)
    if not items:
        told = f"; {n_elsewhere} are of other splits than {', '.join(splits)}" if n_elsewhere else ""
        raise UserError(f"{', '.join(map(str, files))}: no prompt of at most {room} tokens{told}; give some")
    return items


def draw_prompts(items: list[dict[str, Any]], count: int, step: int, seed: int) -> list[dict[str, Any]]:
    """The prompts of a step: each of all comes once before any comes twice, in a new order every time."""
    drawn: list[dict[str, Any]] = []
    for place in range(step * count, (step + 1) * count):
        epoch, index = divmod(place, len(items))
        if not drawn or index == 0:
            order = random.Random(f"{seed}/prompts/{epoch}").sample(range(len(items)), len(items))
        drawn.append(items[order[index]])
    return drawn


def answer(
    policy: Policy, tokenizer: Tokenizer, items: list[dict[str, Any]], max_tokens: int, seed: int
) -> tuple[list[dict[str, Any]], list[Completion], Answers]:
    """One answer to each prompt, the shortest rows first: prompts in that order, answers as they came and as rows."""
    prompts = [item["ids"] for item in items]
    completions = sample(policy, tokenizer, prompts, max_tokens, seed)
    order = shortest_first(prompts, [completion.token_ids for completion in completions])
    items, completions = [items[row] for row in order], [completions[row] for row in order]
    ids = [completion.token_ids for completion in completions]
    return items, completions, pad_answers([item["ids"] for item in items], ids, default_device())


def sampler(policy: Transformer) -> Policy:
    """The policy in the form that answers fastest, always of the weights that it has by then."""
    return compile_transformer(policy, live=True) if can_compile_live(policy) else policy


def sample(
    policy: Policy, tokenizer: Tokenizer, prompts: list[list[int]], max_tokens: int, seed: int
) -> list[Completion]:
    """One answer a prompt by the engine. A new one each time, for its memory, and so its rounding, to be as after a
    resume."""
    engine = Engine(
        policy,
        tokenizer,
        max_batch_size=len(prompts),
        cache_bytes=1 << 30,  # not what happens to be free
        prefix_cache=False,
        drafts=False,
    )
    return engine.generate(prompts, max_tokens=max_tokens, temperature=1.0, seed=seed)


def reward_of(
    rewarder: ScalarModel,
    tokenizer: Tokenizer,
    items: Sequence[dict[str, Any]],
    completions: Sequence[Completion],
    truncated_reward: float,
    cut: Cut,
) -> Tensor:
    """Scores (B,). The reward model reads an answer's text encoded as in its training, not the ids that the policy
    happened to choose for it. Answers that were cut, or so encoded outgrow its context, get `truncated_reward`, or what
    the worst of the whole ones has where that is less: the scale of a reward model is its own."""
    ended = [row for row, answer in enumerate(completions) if answer.finish_reason == "stop"]
    scores_B = torch.full((len(completions),), truncated_reward, device=default_device())
    encoded = {row: encode_answer(tokenizer, items[row]["messages"], completions[row].text) for row in ended}
    context = rewarder.trunk.shape.context
    read = {row: pair for row, pair in encoded.items() if len(pair[0]) + len(pair[1]) <= context}
    if read:
        prompts, texts = zip(*read.values(), strict=True)
        answers = pad_answers(prompts, texts, default_device())
        with without_lora(rewarder.trunk):
            whole = over_pieces(lambda piece: score(rewarder, piece), answers, cut)
        scores_B.clamp_(max=float(whole.min()))
        scores_B[list(read)] = whole
    return scores_B


def gold(items: Sequence[dict[str, Any]], completions: Sequence[Completion]) -> dict[str, float]:
    """What the world's judge says, beside what the reward model says; {} for prompts without a grader."""
    if not all("grader" in item for item in items):
        return {}
    pairs = [(item, answer.text) for item, answer in zip(items, completions, strict=True)]
    right = sum(check(item, text) for item, text in pairs) / len(pairs)
    return {"gold_right": right, "gold_good": sum(is_good(item, text) for item, text in pairs) / len(pairs)}
