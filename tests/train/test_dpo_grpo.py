"""DPO and GRPO: that they begin at the fine-tuned model, and take the right answers for better."""

from __future__ import annotations

import json
from math import exp, log
from pathlib import Path

import pytest
import torch
from tiny_alignment import tiny_policy, tiny_tokenizer, write_comparisons, write_models, write_prompts

from talaria.errors import UserError
from talaria.files import read_json, sha256
from talaria.model.checkpoint import load_model
from talaria.run import read_metrics
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.dpo import dpo, prompt_losses
from talaria.train.grpo import grpo
from talaria.train.ppo import ppo
from talaria.train.reward import Compared, read_compared, train_reward
from talaria.train.settings import (
    DpoSettings,
    GrpoSettings,
    LoraSettings,
    OptimizerSettings,
    PpoSettings,
    RewardSettings,
)

ADAM = OptimizerSettings(learning_rate=3e-3, weight_decay=0.0, warmup_share=0.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def data(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_models(folder, tokenizer)
    write_comparisons(folder / "feedback.db", 60)
    write_prompts(folder / "prompts.jsonl")
    return folder


def test_dpo_begins_at_log_two_and_learns_what_is_preferred(data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = DpoSettings(epochs=10, batch_prompts=8, validation_share=0.25, optimizer=ADAM)
    dpo(settings, data / "sft", [data / "feedback.db"], 7, tmp_path / "dpo")
    rows = read_metrics(tmp_path / "dpo" / "metrics.jsonl")
    assert rows[0]["train_loss"] == pytest.approx(log(2), abs=1e-6)  # the policy is the reference
    assert read_json(tmp_path / "dpo" / "training.json")["held_out_loss"] < 0.9 * log(2)


def test_dpo_judges_whole_answers_against_the_reference_and_no_prompt(tokenizer: Tokenizer, data: Path) -> None:
    """The bug: log-probabilities of the prompt in the score, or a mean over tokens where the sum is meant."""
    policy, reference = tiny_policy(tokenizer).double(), tiny_policy(tokenizer, 1).double()
    training, _, _ = read_compared([data / "feedback.db"], tokenizer, 64, 0.25, 7)
    prompt = Compared(training[0].messages, "helpful", training[0].texts[:2], [(0, 1, 1.0)], training[0].ids[:2])
    scores = []
    for asked, answer in prompt.ids:
        tokens = torch.tensor([[*asked, *answer]])
        total = 0.0
        for model, sign in ((policy, 1), (reference, -1)):
            log_probs = model(tokens[:, :-1]).detach().log_softmax(-1)[0]
            places = range(len(asked) - 1, len(asked) + len(answer) - 1)
            total += sign * sum(float(log_probs[place, tokens[0, place + 1]]) for place in places)
        scores.append(0.3 * total)
    [loss] = prompt_losses(policy, reference, [prompt], beta=0.3)
    assert loss.item() == pytest.approx(log(1 + exp(scores[1] - scores[0])), abs=1e-9)


def graded(path: Path) -> Path:
    """Prompts for which any answer of a word or more is right, if it ends."""
    rows = [json.loads(line) for line in write_prompts(path).read_text().splitlines()]
    graded = {"grader": "not_refusal", "answer": ""}
    path.write_text("".join(json.dumps(row | graded) + "\n" for row in rows))
    return path


def test_grpo_learns_from_a_verifier_and_cut_answers_are_not_right(data: Path, tmp_path: Path) -> None:
    before = sha256(data / "sft")
    settings = GrpoSettings(
        steps=25, rollouts=8, group=8, max_tokens=10, kl_coefficient=0.0, truncated_reward=-1.0, optimizer=ADAM
    )
    grpo(settings, data / "sft", None, [graded(tmp_path / "prompts.jsonl")], 7, tmp_path / "grpo")
    rows = read_metrics(tmp_path / "grpo" / "metrics.jsonl")
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5)  # the pieces that are read may be cut otherwise: rounding
    first, last = (sum(row["reward"] for row in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last > (1 + first) / 2  # at least half of the way to all right
    assert sha256(data / "sft") == before


def test_in_bfloat16_the_policy_is_still_its_own_reference_at_the_first_step(data: Path, tmp_path: Path) -> None:
    """The bug: one of the two is read by other kernels, or in fp32, and the KL begins at their rounding."""
    settings = GrpoSettings(steps=1, rollouts=4, group=4, max_tokens=10, dtype="bfloat16", optimizer=ADAM)
    grpo(settings, data / "sft", None, [graded(tmp_path / "prompts.jsonl")], 7, tmp_path / "grpo")
    [row] = read_metrics(tmp_path / "grpo" / "metrics.jsonl")
    assert row["kl"] == pytest.approx(0.0, abs=1e-4) and row["kl_penalty"] == pytest.approx(0.0, abs=1e-6)


def test_grpo_without_a_grader_says_what_to_do(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs prompts with a grader"):
        grpo(GrpoSettings(steps=1, max_tokens=8), data / "sft", None, [data / "prompts.jsonl"], 7, tmp_path / "grpo")
    with pytest.raises(UserError, match="needs a reward model"):
        grpo(GrpoSettings(steps=1, reward="model"), data / "sft", None, [data / "prompts.jsonl"], 7, tmp_path / "grpo")


def test_with_lora_everything_trains_and_what_is_written_is_a_plain_model(data: Path, tmp_path: Path) -> None:
    lora = LoraSettings(rank=2)
    databases, prompts = [data / "feedback.db"], [data / "prompts.jsonl"]
    train_reward(RewardSettings(lora=lora, optimizer=ADAM), data / "sft", databases, 7, tmp_path / "reward")
    reward = tmp_path / "reward" / "reward_model"
    small = {"rollouts": 4, "max_tokens": 8, "lora": lora, "optimizer": ADAM, "steps": 2}
    ppo(PpoSettings(**small, ptx_coefficient=0), data / "sft", reward, prompts, None, 7, tmp_path / "ppo")
    grpo(GrpoSettings(**small, reward="model"), data / "sft", reward, prompts, 7, tmp_path / "grpo")
    dpo(DpoSettings(lora=lora, optimizer=ADAM), data / "sft", databases, 7, tmp_path / "dpo")
    base, _ = load_model(data / "sft")
    for stage in ("ppo", "grpo", "dpo"):
        model, _ = load_model(tmp_path / stage / "model")
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, base.get_parameter(name))}
        assert changed == {name for name, p in base.named_parameters() if name.startswith("blocks") and p.ndim == 2}
    assert read_metrics(tmp_path / "ppo" / "metrics.jsonl")[0]["kl"] == 0.0
