"""A real model's answers have in training the probabilities that they were sampled with."""

from __future__ import annotations

import pytest
import torch

from talaria.infer.engine import Engine
from talaria.model.checkpoint import load_model
from talaria.train.answers import answer_log_probs, pad_answers

from .test_smollm2 import model_file

pytestmark = pytest.mark.slow
QUESTIONS = (
    "What is the capital of France?",
    "Write one line about the sea.",
    "法国的首都是哪里？",
    "2+2?",
    "Hi",
    "Why?",
)


def test_smollm2s_sampled_log_probabilities_are_the_trainers() -> None:
    model, tokenizer = load_model(model_file())
    engine = Engine(model, tokenizer, max_batch_size=len(QUESTIONS), prefix_cache=False)
    prompts = [engine.chat_prompt([{"role": "user", "content": question}]) for question in QUESTIONS]
    completions = engine.generate(prompts, max_tokens=24, temperature=1.0, seed=3)
    answers = pad_answers(prompts, [completion.token_ids for completion in completions])
    with torch.no_grad():
        trainer = answer_log_probs(model, answers)[0][answers.mask_BT]
    sampler = torch.tensor([p for completion in completions for p in completion.log_probs])
    gap = (sampler - trainer).abs()
    print(f"{len(gap)} tokens: largest gap {float(gap.max()):.2e}, mean {float(gap.mean()):.2e}")
    assert len(gap) > 60
    assert float(gap.max()) <= 1e-4 and float(gap.mean()) <= 1e-5
