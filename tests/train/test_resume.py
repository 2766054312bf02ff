"""Killed at random instants, also while saving, training ends with the weights of an undisturbed run, bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from kills import assert_kills_change_nothing

from talaria.corpus.document import Document
from talaria.errors import UserError
from talaria.files import sha256
from talaria.model.settings import ModelSettings
from talaria.run import Stage, lock, read_metrics, run_stage
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.shards import write_shards
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.checkpoint import checkpoints
from talaria.train.meter import Meter
from talaria.train.pretrain import pretrain
from talaria.train.settings import OptimizerSettings, PretrainSettings, SftSettings
from talaria.train.sft import sft
from talaria.train.step import StepResult

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


def run_pretrain(data: Path, run: Path, threads: int = 1) -> None:
    torch.set_num_threads(threads)
    with lock(run):
        run_stage(
            run,
            Stage("pretrain", PRETRAIN, {}, (), lambda folder: pretrain(PRETRAIN, MODEL, data / "tokens", 7, folder)),
        )


def run_sft(data: Path, run: Path, threads: int = 1) -> None:
    torch.set_num_threads(threads)
    base, replay = data / "base" / "pretrain" / "model", data / "tokens" / "shards"
    conversations = [data / "conversations.jsonl"]
    with lock(run):
        run_stage(run, Stage("sft", SFT, {}, (), lambda folder: sft(SFT, base, conversations, replay, 7, folder)))


@pytest.fixture(scope="module")
def base(data: Path) -> Path:
    run_pretrain(data, data / "base")
    return data / "base"


@pytest.mark.parametrize(
    ("name", "work", "threads", "wanted"),
    [
        ("pretrain", run_pretrain, 1, KILLS),
        ("sft", run_sft, 1, KILLS),
        ("pretrain", run_pretrain, 2, min(KILLS, 3)),  # micro-batches side by side
    ],
)
def test_killed_at_random_instants_the_weights_are_the_same_bit_for_bit(
    name: str, work: Callable[..., None], threads: int, wanted: int, data: Path, base: Path, tmp_path: Path
) -> None:
    assert_kills_change_nothing(
        name,
        partial(work, data, threads=threads),
        ["model/model.safetensors", "training.json"],
        tmp_path,
        kills=wanted,
        pause=0.2,
        resumed=wanted // 3,
    )


def stopped_at(step: int, work: Callable[[], None]) -> list[int]:
    """Do `work` and interrupt it within `step`, before its metrics are written and saved; the steps that it made."""
    steps: list[int] = []
    count = Meter.count

    def count_and_stop(meter: Meter, at: int, result: StepResult) -> None:
        count(meter, at, result)
        steps.append(at)
        if at == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Meter, "count", count_and_stop)
        with contextlib.suppress(KeyboardInterrupt):
            work()
    return steps


def test_a_resumed_run_goes_on_from_its_checkpoint(data: Path, base: Path, tmp_path: Path) -> None:
    """The bug: a checkpoint that is never found. The result is the same, only all of the time is lost."""
    for work in (
        lambda: pretrain(PRETRAIN, MODEL, data / "tokens", 7, tmp_path / "pretrain"),
        lambda: sft_on(data, base, tmp_path / "sft"),
    ):
        assert stopped_at(5, work) == [1, 2, 3, 4, 5]
        assert stopped_at(7, work) == [5, 6, 7]


def test_a_run_stopped_before_its_first_checkpoint_leaves_no_rows_twice(data: Path, base: Path, tmp_path: Path) -> None:
    stopped_at(1, lambda: sft_on(data, base, tmp_path / "sft"))
    assert not checkpoints(tmp_path / "sft" / "checkpoints")
    stopped_at(3, lambda: sft_on(data, base, tmp_path / "sft"))
    rows = read_metrics(tmp_path / "sft" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]


def sft_on(data: Path, base: Path, folder: Path, settings: SftSettings = SFT) -> None:
    model, replay = base / "pretrain" / "model", data / "tokens" / "shards"
    sft(settings, model, [data / "conversations.jsonl"], replay if settings.replay_share else None, 7, folder)


def test_a_corrupt_checkpoint_is_refused_and_named(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pretrain"
    stopped_at(5, lambda: pretrain(PRETRAIN, MODEL, data / "tokens", 7, folder))
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


def test_every_validated_model_is_kept_where_it_is_asked_for(data: Path, base: Path, tmp_path: Path) -> None:
    """The bug: checkpoints to choose among by something else than loss that are all the best one by loss."""
    settings = SFT.model_copy(update={"keep_validated": True, "validate_every_steps": 2})
    sft_on(data, base, tmp_path, settings)
    record = json.loads((tmp_path / "training.json").read_text())
    kept = sorted(path.name for path in (tmp_path / "validated").iterdir())
    steps = sorted({*range(0, record["steps"], 2), record["steps"]})
    assert kept == [f"step-{step:06d}" for step in steps] and len(kept) > 2
    assert len({sha256(tmp_path / "validated" / name) for name in kept}) == len(kept)
    assert sha256(tmp_path / "validated" / f"step-{record['best_step']:06d}") == sha256(tmp_path / "model")
