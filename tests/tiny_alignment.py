"""A tiny chat vocabulary, policies with random weights, and comparisons, for the tests of what learns from answers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from random_weights import random_model

from talaria.corpus.document import Document
from talaria.feedback.store import FeedbackStore
from talaria.model.checkpoint import save_model
from talaria.model.scalar import ScalarModel, save_scalar_model
from talaria.model.shape import ModelShape, shape_from_depth
from talaria.model.transformer import Transformer
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.shards import write_shards
from talaria.tokens.tokenizer import Tokenizer
from talaria.tokens.vocabulary import END_OF_TURN

WORDS = ["the", "wing", "of", "a", "sandal", "carries", "one", "word", "over", "sea", "and", "land", "to", "gods"]


def tiny_tokenizer() -> Tokenizer:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=30)) for _ in range(200)]
    return Tokenizer.train(texts, TokenizerSettings(vocab_size=300))


def tiny_shape(tokenizer: Tokenizer, context: int = 64) -> ModelShape:
    return shape_from_depth(2, tokenizer.vocab_size, context, d_model=32, n_heads=2)


@torch.no_grad()
def tiny_policy(tokenizer: Tokenizer, seed: int = 0, context: int = 64) -> Transformer:
    """Random weights, but about every sixth token ends the answer: most answers end, at different lengths."""
    model = random_model(tiny_shape(tokenizer, context), seed)
    tokens = torch.randint(0, tokenizer.vocab_size, (16, 16), generator=torch.Generator().manual_seed(seed))
    hidden = model.hidden(tokens).flatten(0, 1)
    end = tokenizer.special_ids[END_OF_TURN]
    towards, before = hidden.mean(dim=0), model.embed.weight[end].clone()
    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        model.embed.weight[end] = before + middle * towards
        ends = float(model.head(hidden).softmax(-1)[:, end].mean())
        low, high = (middle, high) if ends < 1 / 6 else (low, middle)
    return model


def write_models(folder: Path, tokenizer: Tokenizer) -> tuple[Path, Path]:
    """Folders of a policy and of a reward model that began as it."""
    policy = tiny_policy(tokenizer)
    save_model(policy, tokenizer, folder / "sft")
    scorer = ScalarModel(policy, torch.Generator().manual_seed(5))
    save_scalar_model(scorer, tokenizer, folder / "reward")
    return folder / "sft", folder / "reward"


def write_data(folder: Path) -> Path:
    """All that stages which learn from answers read: models, comparisons, prompts, a tokenizer stage's folder."""
    tokenizer, settings = tiny_tokenizer(), TokenizerSettings(vocab_size=300, validation_fraction=0.05)
    write_models(folder, tokenizer)
    write_comparisons(folder / "feedback.db")
    write_prompts(folder / "prompts.jsonl")
    tokenizer.save(folder / "tokens" / "tokenizer")
    documents = [Document(str(i), f"the sea of gods {i} and the land of one sandal", "made") for i in range(150)]
    write_shards(documents, tokenizer, folder / "tokens" / "shards", settings)
    return folder


def write_prompts(path: Path, count: int = 24) -> Path:
    draw = random.Random(2)
    rows = [
        {"messages": [{"role": "user", "content": " ".join(draw.choices(WORDS, k=k % 5 + 1))}]} for k in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_comparisons(path: Path, count: int = 40) -> Path:
    """Three answers a prompt; the better one has more words "gods"."""
    draw = random.Random(3)
    store = FeedbackStore(path)
    for number in range(count):
        prompt = store.append_prompt([{"role": "user", "content": f"{number} " + draw.choice(WORDS)}])
        texts = [" ".join(draw.choices(WORDS, k=4) + ["gods"] * n) for n in (2, 1, 0)]
        ids = [store.append_answer(prompt, text, model="made") for text in texts]
        ranking = [[ids[0]], [ids[1], ids[2]]] if number % 4 == 0 else [[i] for i in ids]
        store.append_comparison(prompt, ranking, annotator="ann")
    store.close()
    return path
