"""Whole stages on a GPU: pretraining, fine-tuning, reward model, DPO, GRPO and PPO, doctor and plan."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from tiny_alignment import WORDS, write_data

from talaria.errors import UserError
from talaria.infer.load import load
from talaria.model.settings import ModelSettings
from talaria.planning import make_plan
from talaria.run import Stage, lock, read_metrics, run_stage
from talaria.scaling.planner import CHINCHILLA, Budget
from talaria.train import parallel
from talaria.train.doctor import examine
from talaria.train.dpo import dpo
from talaria.train.grpo import grpo
from talaria.train.ppo import ppo
from talaria.train.pretrain import pretrain
from talaria.train.reward import train_reward
from talaria.train.settings import (
    DpoSettings,
    GrpoSettings,
    OptimizerSettings,
    PpoSettings,
    PretrainSettings,
    RewardSettings,
    SftSettings,
)
from talaria.train.sft import sft

ADAM = OptimizerSettings(learning_rate=1e-3, weight_decay=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("data"))
    rows = [
        {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": f"one {word} over the sea"}]}
        for word in WORDS * 6
    ]
    (folder / "conversations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_pretraining_stopped_and_resumed_ends_where_it_would_have(data: Path, tmp_path: Path) -> None:
    settings = PretrainSettings(tokens=40 * 128, batch_tokens=128, dtype="float32", checkpoint_every_seconds=1e-9)
    model = ModelSettings(depth=2, d_model=32, n_heads=2, context=32)

    def run(at: Path, steps: int | None = None) -> list[float]:
        def work(folder: Path) -> None:
            pretrain(settings, model, data / "tokens", 7, folder)

        with lock(at):
            if steps is None:
                run_stage(at, Stage("pretrain", settings, {}, (), work))
                return values(at / "pretrain", "train_loss")
            with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                stop_after(patch, steps)
                run_stage(at, Stage("pretrain", settings, {}, (), work))
        return []

    whole = run(tmp_path / "whole")
    run(tmp_path / "stopped", steps=17)
    assert run(tmp_path / "stopped") == pytest.approx(whole, rel=1e-5)
    assert len(whole) == 40 and whole[-1] < whole[0] - 0.5
    assert load(tmp_path / "stopped").model.device.type == "cuda"


def values(folder: Path, name: str) -> list[float]:
    """Of each row of a stage's metrics that has it."""
    return [row[name] for row in read_metrics(folder / "metrics.jsonl") if name in row]


def stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    from talaria.train.session import Session

    advance = Session.advance

    def counted(self: Session, measure_noise: bool = False) -> object:
        if self.step == steps:
            raise KeyboardInterrupt
        return advance(self, measure_noise)

    patch.setattr(Session, "advance", counted)


def test_fine_tuning_learns(data: Path, tmp_path: Path) -> None:
    settings = SftSettings(epochs=3.0, batch_tokens=256, replay_share=0.25, dtype="bfloat16", optimizer=ADAM)
    replay = data / "tokens" / "shards"
    sft(settings, data / "sft", [data / "conversations.jsonl"], replay, 7, tmp_path)
    losses = values(tmp_path, "train_loss")
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reward_model_and_dpo_learn_what_is_preferred(data: Path, tmp_path: Path, dtype: str) -> None:
    settings = RewardSettings(epochs=4, batch_prompts=4, optimizer=ADAM, dtype=dtype)
    train_reward(settings, data / "sft", [data / "feedback.db"], 7, tmp_path / "reward")
    told = json.loads((tmp_path / "reward" / "training.json").read_text())
    assert told["accuracy"] > 0.7, told
    choice = DpoSettings(epochs=2, batch_prompts=4, optimizer=ADAM)
    dpo(choice, data / "sft", [data / "feedback.db"], 7, tmp_path / "dpo")
    losses = values(tmp_path / "dpo", "train_loss")
    assert losses[0] == pytest.approx(0.6931, abs=2e-3) and losses[-1] < 0.6


def test_ppo_begins_at_the_reference_and_samples_what_it_trains(data: Path, tmp_path: Path) -> None:
    settings = PpoSettings(
        steps=6, rollouts=16, max_tokens=8, epochs=2, ptx_coefficient=2.0, ptx_rows=2, optimizer=ADAM, kl_target=0.5
    )
    ppo(settings, data / "sft", data / "reward", [data / "prompts.jsonl"], data / "tokens" / "shards", 7, tmp_path)
    kl = values(tmp_path, "kl")
    assert len(kl) == 6
    assert kl[0] == pytest.approx(0.0, abs=1e-4)
    assert abs(kl[-1]) > 1e-3
    assert max(values(tmp_path, "sampler_gap_max")) < 1e-4


def test_grpo_raises_its_reward(data: Path, tmp_path: Path) -> None:
    settings = GrpoSettings(steps=12, rollouts=32, max_tokens=8, reward="model", optimizer=ADAM)
    grpo(settings, data / "sft", data / "reward", [data / "prompts.jsonl"], 7, tmp_path)
    rewards = values(tmp_path, "reward")
    assert sum(rewards[-4:]) > sum(rewards[:4])


def test_doctor_names_the_gpu_and_a_plan_measures_it(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=160).print(examine())
    told = capsys.readouterr().out
    assert torch.cuda.get_device_name() in told
    plan = make_plan(CHINCHILLA, Budget(), hours=0.05)
    assert plan.flops_per_second > 1e12
    assert plan.hours == pytest.approx(0.05, rel=0.2)


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    n = torch.cuda.device_count()
    for name, value in (("RANK", n), ("LOCAL_RANK", n), ("WORLD_SIZE", n + 1)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match=f"rank {n} of this machine has no GPU of its own: it has {n};"):
        parallel.start()


def test_ranks_meet_over_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    parallel.start()
    try:
        assert torch.distributed.get_backend() == "nccl"
        tensor = torch.ones(3, device="cuda")
        torch.distributed.all_reduce(tensor)
        assert tensor.tolist() == [1, 1, 1]
    finally:
        torch.distributed.destroy_process_group()
        for name in values:
            os.environ.pop(name, None)
