"""Killed at random instants, also while saving, training ends with the weights of an undisturbed run, bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from talaria.corpus.document import Document
from talaria.errors import UserError
from talaria.model.settings import ModelSettings
from talaria.run import Stage, lock, read_metrics, run_stage, sha256
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.shards import write_shards
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.checkpoint import checkpoints
from talaria.train.pretrain import pretrain
from talaria.train.settings import OptimizerSettings, PretrainSettings, SftSettings
from talaria.train.sft import sft

KILLS = int(os.environ.get("TALARIA_KILLS", "6"))
"""Kills a stage. `TALARIA_KILLS=20 pytest tests/train/test_resume.py` is what docs/results.md records."""
MODEL = ModelSettings(depth=2, d_model=32, n_heads=2, context=32)
# A checkpoint at every step, so that most kills fall into a save.
PRETRAIN = PretrainSettings(
    tokens=40 * 128,
    batch_tokens=128,
    micro_batch_tokens=64,
    noise_scale_every_steps=5,
    validate_every_steps=10,
    checkpoint_every_seconds=1e-9,
    optimizer=OptimizerSettings(name="muon", learning_rate=1e-2),
)
SFT = SftSettings(
    epochs=3.0,
    batch_tokens=128,
    replay_share=0.25,
    validation_share=0.1,
    validate_every_steps=4,
    checkpoint_every_seconds=1e-9,
    optimizer=OptimizerSettings(learning_rate=1e-2),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer stage's folder and a file of conversations."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(0)
    words = ["the", "wing", "of", "a", "sandal", "carries", "one", "word", "over", "sea", "and", "land", "to", "gods"]
    texts = [" ".join(draw.choices(words, k=30)) for _ in range(200)]
    settings = TokenizerSettings(vocab_size=300, validation_fraction=0.05)
    tokenizer = Tokenizer.train(texts, settings)
    tokenizer.save(folder / "tokens" / "tokenizer")
    documents = [Document(str(i), text, "made") for i, text in enumerate(texts)]
    write_shards(documents, tokenizer, folder / "tokens" / "shards", settings)
    with open(folder / "conversations.jsonl", "w") as file:
        for _ in range(80):
            asked, answer = draw.choice(words), draw.choice(words)
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return folder


def run_pretrain(data: Path, run: Path) -> None:
    torch.set_num_threads(1)
    with lock(run):
        run_stage(
            run,
            Stage("pretrain", PRETRAIN, {}, (), lambda folder: pretrain(PRETRAIN, MODEL, data / "tokens", 7, folder)),
        )


def run_sft(data: Path, run: Path) -> None:
    torch.set_num_threads(1)
    base, replay = data / "base" / "pretrain" / "model", data / "tokens" / "shards"
    conversations = [data / "conversations.jsonl"]
    with lock(run):
        run_stage(run, Stage("sft", SFT, {}, (), lambda folder: sft(SFT, base, conversations, replay, 7, folder)))


@pytest.fixture(scope="module")
def base(data: Path) -> Path:
    run_pretrain(data, data / "base")
    return data / "base"


@pytest.mark.parametrize(("name", "work"), [("pretrain", run_pretrain), ("sft", run_sft)])
def test_killed_at_random_instants_the_weights_are_the_same_bit_for_bit(
    name: str, work: Callable[[Path, Path], None], data: Path, base: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["talaria.train.pretrain", "talaria.train.sft", __name__])
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    whole = context.Process(target=work, args=(data, undisturbed))
    whole.start()
    whole.join(300)
    assert whole.exitcode == 0
    draw = random.Random(1)
    saves = killed / f"{name}.partial" / "checkpoints"
    kills, resumed_from = 0, set()
    while kills < KILLS:
        before = checkpoints(saves)[-1:]
        resumed_from.update(path.name for path in before)
        process = context.Process(target=work, args=(data, killed))
        process.start()
        if draw.random() < 0.7:  # else it may die before it has come to its first step
            while process.is_alive() and checkpoints(saves)[-1:] == before:
                time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.2))
        if not process.is_alive():
            assert process.exitcode == 0
            break
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        kills += 1
    final = context.Process(target=work, args=(data, killed))
    final.start()
    final.join(300)
    assert final.exitcode == 0
    assert kills >= 2 and len(resumed_from) >= 2, "the kills never met a run in the middle"
    for file in ("model/model.safetensors", "training.json"):
        assert sha256(killed / name / file) == sha256(undisturbed / name / file), file
    clock = ("time", "tokens_per_second", "flops_per_second", "mfu")
    rows = [
        [{k: v for k, v in row.items() if k not in clock} for row in read_metrics(run / name / "metrics.jsonl")]
        for run in (killed, undisturbed)
    ]
    assert rows[0] == rows[1]


def test_a_corrupt_checkpoint_is_refused_and_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pretrain"
    calls = 0

    def stop_after(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr("talaria.train.meter.Meter.count", stop_after)
    with pytest.raises(KeyboardInterrupt):
        pretrain(PRETRAIN, MODEL, data / "tokens", 7, folder)
    (saved,) = checkpoints(folder / "checkpoints")
    damaged = bytearray((saved / "optimizer.safetensors").read_bytes())
    damaged[-1] ^= 1
    (saved / "optimizer.safetensors").write_bytes(damaged)
    with pytest.raises(UserError, match=rf"{saved}/optimizer.safetensors: .*hash mismatch.*delete {saved}"):
        pretrain(PRETRAIN, MODEL, data / "tokens", 7, folder)


def test_sft_keeps_the_best_model_and_stops_when_it_no_longer_improves(data: Path, base: Path, tmp_path: Path) -> None:
    """Answers here are random, so held-out loss soon rises; the kept weights must be those of the best step."""
    settings = SFT.model_copy(update={"epochs": 30.0, "patience": 2, "replay_share": 0.0})
    folder = tmp_path / "sft"
    sft(settings, base / "pretrain" / "model", [data / "conversations.jsonl"], None, 7, folder)
    record = json.loads((folder / "training.json").read_text())
    losses = {
        row["step"]: row["validation_loss"]
        for row in read_metrics(folder / "metrics.jsonl")
        if "validation_loss" in row
    }
    assert record["stopped_early"] and record["steps"] == max(losses)
    assert record["best_loss"] == pytest.approx(min(losses.values()), rel=1e-6)
    assert losses[record["best_step"]] == min(losses.values())
    assert len([step for step in losses if step > record["best_step"]]) == 2
    assert record["best_loss"] < record["start_loss"]
