"""What a path means: run, stage, checkpoint, model folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from talaria.config import Settings
from talaria.errors import UsageError, UserError
from talaria.infer.engine import Engine
from talaria.infer.load import find_model, load
from talaria.model.checkpoint import save_model
from talaria.model.compiled import CompiledTransformer
from talaria.model.quantized import quantize
from talaria.model.quantized_folder import save_quantized
from talaria.model.transformer import Transformer
from talaria.run import Stage, run_stage
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.checkpoint import save_checkpoint
from talaria.train.optim import make_optimizers
from talaria.train.settings import OptimizerSettings

from .conftest import GPT2, LLAMA, SHIFTED, tiny_model


def stage(run: Path, name: str, done: bool = True, parents: tuple[str, ...] = (), weights: bytes = b"") -> Path:
    """A finished stage as a run makes it; or one that was only begun."""

    def work(folder: Path) -> None:
        (folder / "model").mkdir(parents=True, exist_ok=True)
        (folder / "model" / "config.json").write_text("{}")
        (folder / "model" / "model.safetensors").write_bytes(weights)

    if done:
        run_stage(run, Stage(name, Settings(), {}, parents, work), force=True)
    else:
        work(run / name)
    return run / name / "model"


def test_a_run_gives_its_last_finished_policy(tmp_path):
    pretrained = stage(tmp_path, "pretrain")
    stage(tmp_path, "sft", done=False)
    (tmp_path / "eval").mkdir()
    assert find_model(tmp_path) == pretrained
    tuned = stage(tmp_path, "sft")
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
    stage(tmp_path, "pretrain")
    (model / "config.json").unlink()
    with pytest.raises(UserError, match="run the stage again"):
        find_model(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="not a model"):
        find_model(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="int8 or int4"):
        load(tmp_path, quantize="8bit")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_model_that_is_not_what_its_stage_wrote_is_refused(tmp_path, name):
    """The bug: weights swapped or damaged after training are chatted with as if they were the run's."""
    model = stage(tmp_path, "pretrain")
    (model / name).write_text("other")
    for path in (tmp_path, tmp_path / "pretrain"):
        with pytest.raises(UserError, match=rf"{model / name}: not what stage pretrain wrote.*talaria run"):
            find_model(path)


def test_a_stage_made_from_what_is_no_longer_there_is_refused(tmp_path):
    stage(tmp_path, "pretrain", weights=b"one")
    tuned = stage(tmp_path, "sft", parents=("pretrain",))
    assert find_model(tmp_path) == tuned
    manifest = tmp_path / "pretrain" / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(UserError, match=r"sft: stale, for pretrain was made again since.*talaria run"):
        find_model(tmp_path)


@pytest.mark.parametrize("variant", [LLAMA, GPT2, LLAMA | {"qk_norm": True}], ids=["llama", "gpt2", "qwen3"])
def test_a_training_checkpoint_is_a_model_folder(tmp_path, variant):
    """Also of shapes whose exported weights bear other names than the trunk's."""
    tokenizer = Tokenizer.train(["hello world, how are you? " * 20], TokenizerSettings(vocab_size=300))
    model = tiny_model(variant, vocab_size=tokenizer.vocab_size)
    optimizers = make_optimizers(model, OptimizerSettings(), 1e-3)
    save_checkpoint(tmp_path / "checkpoints", 100, model, tokenizer, optimizers, {})
    saved = tmp_path / "checkpoints" / "step-000100"
    engine = load(saved, compiled=False)
    expected = model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in engine.trunk.state_dict().items())
    assert engine.tokenizer.stop_ids == tokenizer.stop_ids
    assert engine.generate(["hello"], max_tokens=4, seed=1) == Engine(model, tokenizer).generate(
        ["hello"], max_tokens=4, seed=1
    )
    damaged = bytearray((saved / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (saved / "model.safetensors").write_bytes(damaged)
    with pytest.raises(UserError, match=rf"{saved}/model.safetensors: not what was saved"):
        load(saved)


def test_a_saved_model_chats_after_loading(tmp_path):
    tokenizer = Tokenizer.train(["hello world, how are you? 你好世界 " * 20], TokenizerSettings(vocab_size=300))
    save_model(tiny_model(LLAMA, vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "m")
    engine = load(tmp_path / "m")
    messages = [{"role": "user", "content": "hello 你好"}]
    completion = engine.chat(messages, max_tokens=12, seed=4)
    assert "".join(c.text for c in engine.stream_chat(messages, max_tokens=12, seed=4)) == completion.text
    assert completion.prompt_tokens == len(engine.chat_prompt(messages))
    assert engine.tokenizer.decode(completion.token_ids) == completion.text


@pytest.fixture
def saved(tmp_path):
    tokenizer = Tokenizer.train(["a b c"], TokenizerSettings(vocab_size=300))
    save_model(tiny_model(LLAMA, vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_a_device_that_is_not_there_is_refused(saved):
    for name in ("cuda:99", "abacus"):
        with pytest.raises(UsageError, match="this machine has cpu"):
            load(saved, device=name)
    assert load(saved, device="cpu").generate(["a"], max_tokens=2)


@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
def test_a_cpu_runs_the_compiled_model_unless_told_otherwise(saved, scheme):
    pytest.importorskip("openvino")
    engine, plain = load(saved, scheme, device="cpu"), load(saved, scheme, device="cpu", compiled=False)
    assert isinstance(engine.model, CompiledTransformer) and isinstance(plain.trunk, Transformer)
    with pytest.raises(UsageError, match="compiled=False"):
        _ = engine.trunk
    pairs = [("a b", " c a b"), ("c", " b b b a")]
    for one, other in zip(engine.loglikelihood(pairs), plain.loglikelihood(pairs), strict=True):
        # Activations of rounded weights are rounded too, to bfloat16 or to 8 bits: by some part in 256 a product.
        assert one.log_prob == pytest.approx(other.log_prob, abs=0.1 * one.n_tokens if scheme else 1e-4)


def test_a_shape_that_cannot_be_compiled_runs_as_it_is_or_is_refused(saved, tmp_path):
    pytest.importorskip("openvino")
    tokenizer = load(saved, compiled=False).tokenizer
    for name, variant in (("shift", {"token_shift": True}), ("tables", {"ngram_embeddings": 1}), ("both", SHIFTED)):
        save_model(tiny_model(variant, vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / name)
        with pytest.raises(UserError, match=rf"{tmp_path / name}: cannot be compiled; .*without token shift"):
            load(tmp_path / name, device="cpu", compiled=True)
        assert isinstance(load(tmp_path / name, device="cpu").trunk, Transformer)


def test_without_openvino_the_trunk_runs_or_the_extra_is_named(saved, monkeypatch):
    """The bug: an import error, where the model could have been run by torch."""
    monkeypatch.setattr("talaria.model.compiled.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    engine = load(saved, device="cpu")
    assert isinstance(engine.trunk, Transformer)
    assert engine.generate(["a"], max_tokens=2)
    with pytest.raises(UserError, match=rf"{saved}: cannot be compiled; it needs openvino .*talaria-lm\[serve\]"):
        load(saved, device="cpu", compiled=True)


def test_four_bit_weights_of_an_earlier_version_are_refused_by_folder(saved, tmp_path):
    pytest.importorskip("openvino")
    plain = load(saved, device="cpu", compiled=False)
    quantized = quantize(plain.trunk, "int4")
    up = quantized.blocks[0].feed_forward.up
    up.grid[..., 1] += 0.4 * up.grid[..., 0]
    save_quantized(quantized, plain.tokenizer, tmp_path / "old")
    for compiled in (None, True):
        with pytest.raises(UserError, match=rf"{tmp_path / 'old'}: 4-bit weights of an earlier version; quantize"):
            load(tmp_path / "old", device="cpu", compiled=compiled)
    assert load(tmp_path / "old", device="cpu", compiled=False).generate(["a"], max_tokens=2)


def test_bfloat16_is_refused_on_a_cpu_and_other_dtypes_everywhere(saved):
    with pytest.raises(UsageError, match="dtype='bfloat16' is for a GPU; on a CPU leave it out"):
        load(saved, device="cpu", dtype="bfloat16")
    with pytest.raises(UsageError, match="dtype='float16' is unknown; choose float32 or bfloat16"):
        load(saved, device="cpu", dtype="float16")
