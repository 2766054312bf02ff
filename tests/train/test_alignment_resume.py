"""Killed at random instants, what learns from answers ends with the weights of an undisturbed run, bit for bit."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from kills import assert_kills_change_nothing
from tiny_alignment import write_data

from talaria.run import Stage, lock, run_stage
from talaria.train.dpo import dpo
from talaria.train.grpo import grpo
from talaria.train.ppo import ppo
from talaria.train.reward import train_reward
from talaria.train.settings import DpoSettings, GrpoSettings, OptimizerSettings, PpoSettings, RewardSettings

KILLS = int(os.environ.get("TALARIA_KILLS", "2"))
"""Kills a stage. `TALARIA_KILLS=20 pytest tests/train/test_alignment_resume.py` is what docs/results.md records."""
ADAM = OptimizerSettings(learning_rate=1e-3, weight_decay=0.0)
# A checkpoint at every step, so that most kills fall into a save.
OFTEN = 1e-9
SETTINGS = {
    "reward": RewardSettings(epochs=2, batch_prompts=4, optimizer=ADAM, checkpoint_every_seconds=OFTEN),
    "dpo": DpoSettings(epochs=2, batch_prompts=4, optimizer=ADAM, checkpoint_every_seconds=OFTEN),
    "ppo": PpoSettings(
        steps=8,
        rollouts=8,
        max_tokens=8,
        epochs=2,
        kl_target=0.5,
        ptx_coefficient=2.0,
        ptx_rows=2,
        optimizer=ADAM,
        checkpoint_every_seconds=OFTEN,
    ),
    "grpo": GrpoSettings(
        steps=8, rollouts=4, max_tokens=8, reward="model", optimizer=ADAM, checkpoint_every_seconds=OFTEN
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def work(name: str, data: Path, run: Path) -> None:
    torch.set_num_threads(1)
    settings = SETTINGS[name]
    databases, prompts, base, reward = [data / "feedback.db"], [data / "prompts.jsonl"], data / "sft", data / "reward"

    def stage(folder: Path) -> None:
        if isinstance(settings, RewardSettings):
            train_reward(settings, base, databases, 7, folder)
        elif isinstance(settings, DpoSettings):
            dpo(settings, base, databases, 7, folder)
        elif isinstance(settings, PpoSettings):
            ppo(settings, base, reward, prompts, data / "tokens" / "shards", 7, folder)
        else:
            grpo(settings, base, reward, prompts, 7, folder)

    with lock(run):
        run_stage(run, Stage(name, settings, {}, (), stage))


@pytest.mark.parametrize(
    ("name", "wanted"), [("reward", KILLS), ("ppo", KILLS), ("dpo", -(-KILLS // 2)), ("grpo", -(-KILLS // 2))]
)
def test_killed_at_random_instants_the_weights_are_the_same_bit_for_bit(
    name: str, wanted: int, data: Path, tmp_path: Path
) -> None:
    assert_kills_change_nothing(
        name,
        partial(work, name, data),
        ["reward_model/model.safetensors" if name == "reward" else "model/model.safetensors", "training.json"],
        tmp_path,
        kills=wanted,
        pause=0.15,
    )
