"""What a path means: run, stage, checkpoint, model folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from talaria.errors import UserError
from talaria.infer.load import find_model, load
from talaria.model.checkpoint import save_model
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

from .conftest import LLAMA, tiny_model


def stage(run: Path, name: str, done: bool = True) -> Path:
    model = run / name / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")
    if done:
        (run / name / "done.json").write_text("{}")
    return model


def test_a_run_gives_its_last_finished_policy(tmp_path):
    pretrained = stage(tmp_path, "pretrain")
    tuned = stage(tmp_path, "sft", done=False)
    (tmp_path / "eval").mkdir()
    assert find_model(tmp_path) == pretrained
    (tmp_path / "sft" / "done.json").write_text("{}")
    assert find_model(tmp_path) == tuned
    assert find_model(tmp_path / "pretrain") == pretrained
    assert find_model(tuned) == tuned


def test_what_holds_no_finished_model_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no such run folder"):
        find_model(tmp_path / "absent")
    with pytest.raises(UserError, match="no model here"):
        find_model(tmp_path)
    model = stage(tmp_path, "pretrain", done=False)
    with pytest.raises(UserError, match="pretrain not finished"):
        find_model(tmp_path)
    with pytest.raises(UserError, match="this stage is not finished"):
        find_model(tmp_path / "pretrain")
    (model / "config.json").unlink()
    (tmp_path / "pretrain" / "done.json").write_text("{}")
    with pytest.raises(UserError, match="run the stage again"):
        find_model(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="not a model"):
        find_model(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="quantized loading is not available"):
        load(tmp_path, quantize="int8")


def test_a_saved_model_chats_after_loading(tmp_path):
    tokenizer = Tokenizer.train(["hello world, how are you? 你好世界 " * 20], TokenizerSettings(vocab_size=300))
    save_model(tiny_model(LLAMA, vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "m")
    engine = load(tmp_path / "m")
    messages = [{"role": "user", "content": "hello 你好"}]
    completion = engine.chat(messages, max_tokens=12, seed=4)
    assert "".join(c.text for c in engine.stream_chat(messages, max_tokens=12, seed=4)) == completion.text
    assert completion.prompt_tokens == len(engine.chat_prompt(messages))
    assert engine.tokenizer.decode(completion.token_ids) == completion.text
