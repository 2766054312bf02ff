"""What a round is measured on where there is no exam: prompts that training leaves out, else the policy's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from talaria.eval.rounds import _held_prompts
from talaria.eval.settings import EvalSettings
from talaria.infer.engine import Engine
from talaria.model.checkpoint import save_model
from talaria.model.settings import ModelSettings, resolve_shape
from talaria.model.transformer import Transformer
from talaria.tokens.tokenizer import Tokenizer


def test_prompts_are_cut_to_the_context_without_an_engine(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: a whole engine, with its memory of keys and values, for its tokenizer and one number."""

    def refuse(*given: object, **named: object) -> None:
        raise AssertionError("an engine was made")

    shape = resolve_shape(ModelSettings(depth=1, d_model=16, n_heads=2, context=64), tokenizer.vocab_size)
    save_model(Transformer(shape), tokenizer, tmp_path / "model")
    monkeypatch.setattr(Engine, "__init__", refuse)
    rows = [
        {"messages": [{"role": "user", "content": content}], "split": "train"}
        for content in ("Where?", "Where was Mira born? " * 20)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = EvalSettings(max_tokens=16, preference_items=5)
    [kept] = _held_prompts([tmp_path / "prompts.jsonl"], tmp_path / "model", settings, 0)
    assert kept["messages"] == rows[0]["messages"] and len(kept["ids"]) <= 64 - 16
    rows += [rows[0] | {"split": split} for split in ("validation", "test")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = _held_prompts([tmp_path / "prompts.jsonl"], tmp_path / "model", settings, 0)
    assert [item["split"] for item in kept] == ["validation", "train"]
    settings = EvalSettings(max_tokens=16, preference_items=1)
    [kept] = _held_prompts([tmp_path / "prompts.jsonl"], tmp_path / "model", settings, 0)
    assert kept["split"] == "validation"
