"""GRPO (Shao et al. 2024): several answers a prompt, each judged against the others of its group; no value network.

The reward is a verifier's, the grader that stands with each prompt (right or wrong), or the reward model's. Rollouts,
scores and the clipped loss are PPO's. Writes model/, checkpoints/, metrics.jsonl and training.json.

Shapes: B rows, T places, K answers of a group. A row holds one or more answers of a group behind their prompt.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from talaria.errors import UserError
from talaria.files import atomic_folder
from talaria.infer.contract import row_seed
from talaria.model.checkpoint import load_model, save_model
from talaria.model.device import default_device
from talaria.model.lora import add_lora, merged_copy, without_lora
from talaria.model.scalar import load_scalar_model
from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer
from talaria.train.answers import answer_log_probs, in_pieces, over_pieces
from talaria.train.branches import Branches, Ids, answers_a_row, branch_rows, row_length
from talaria.train.cores import cut_for
from talaria.train.policy_losses import clipped_policy_loss, group_advantages, kl_penalty
from talaria.train.ppo import Told
from talaria.train.rollouts import draw_prompts, gold, read_prompts, reward_of, sample, sampler
from talaria.train.settings import GrpoSettings
from talaria.train.tuning import Tuning
from talaria.world.judge import check


class Judged(NamedTuple):
    """Answers and what was known of them before the updates, all (B, T). Log-probabilities and entropies of the policy
    are written by the first update, which reads the answers before it changes anything."""

    inputs_BT: Tensor
    targets_BT: Tensor
    mask_BT: Tensor
    positions_BT: Tensor
    branch_BT: Tensor
    log_probs_BT: Tensor
    entropy_BT: Tensor
    reference_BT: Tensor
    advantages_BT: Tensor

    @property
    def answers(self) -> Branches:
        return Branches(*self[:5])


def grpo(
    settings: GrpoSettings, base: Path, reward: Path | None, prompt_files: Sequence[Path], seed: int, folder: Path
) -> None:
    """Improve the model at `base`; `reward` is the reward model where `settings.reward` asks for one."""
    policy, tokenizer = load_model(base)
    if settings.lora is None:
        reference = load_model(base)[0].to(default_device()).requires_grad_(False)
    else:  # The fine-tuned model is the policy without its LoRA.
        add_lora(policy, settings.lora.rank, settings.lora.alpha, torch.Generator().manual_seed(seed))
        reference = policy
    rewarder = None
    if settings.reward == "model":
        if reward is None:
            raise UserError('grpo.reward = "model" needs a reward model; add [reward], or take "verifier"')
        rewarder = load_scalar_model(reward)[0].to(default_device()).requires_grad_(False)
    tuning = Tuning(
        "grpo",
        folder,
        {"policy": policy},
        policy,
        tokenizer,
        settings.optimizer,
        settings.steps,
        learning_rates={"policy": settings.optimizer.learning_rate or 1e-4},
        checkpoint_every_seconds=settings.checkpoint_every_seconds,
        seed=seed,
        dtype=settings.dtype,
    )
    speaker = sampler(policy)
    items = read_prompts(prompt_files, tokenizer, policy.shape.context - settings.max_tokens)
    if rewarder is None and not all("grader" in item for item in items):
        raise UserError('grpo.reward = "verifier" needs prompts with a grader and an answer; take "model"')

    with tuning.progress:
        while not tuning.finished:
            started = time.monotonic()
            drawn = draw_prompts(items, settings.rollouts, tuning.step, seed)
            chosen = [item for item in drawn for _ in range(settings.group)]
            prompts = [item["ids"] for item in chosen]
            completions = sample(speaker, tokenizer, prompts, settings.max_tokens, row_seed(seed, tuning.step + 1))
            if rewarder is None:
                # A grader reads what is there, but an answer that was cut is not one that ended.
                rewards = [
                    float(check(item, answer.text)) if answer.finish_reason == "stop" else settings.truncated_reward
                    for item, answer in zip(chosen, completions, strict=True)
                ]
                scores_B = torch.tensor(rewards, device=default_device())
            else:
                longest = max(len(item["ids"]) for item in chosen) + settings.max_tokens
                cut = cut_for(policy, (len(prompts), longest), settings.micro_batch_tokens)
                with tuning.products():
                    scores_B = reward_of(rewarder, tokenizer, chosen, completions, settings.truncated_reward, cut)
            advantages_B = group_advantages(scores_B.view(-1, settings.group)).flatten()
            groups_alike = float((advantages_B.view(-1, settings.group) == 0).all(dim=1).float().mean())
            answers, advantages_BT = as_rows(
                policy.shape, prompts, [answer.token_ids for answer in completions], advantages_B, settings.group
            )
            cut = cut_for(policy, advantages_BT.shape, settings.micro_batch_tokens)
            with tuning.products(), without_lora(reference):
                reference_BT = over_pieces(lambda piece: answer_log_probs(reference, piece)[0], answers, cut)
            unknown_BT = torch.zeros_like(reference_BT)
            judged = Judged(*answers, unknown_BT, unknown_BT.clone(), reference_BT, advantages_BT)
            told = Told()
            for epoch in range(settings.epochs):
                update(settings, tuning, policy, judged, told, is_first=epoch == 0)
            kl = float((judged.log_probs_BT - reference_BT).sum() / len(prompts))
            tuning.end_step(
                f"reward {float(scores_B.mean()):+.3f}  KL {kl:.3f}",
                reward=float(scores_B.mean()),
                kl=kl,
                entropy=float(judged.entropy_BT.sum() / answers.mask_BT.sum()),
                answer_tokens=float(answers.mask_BT.sum() / len(prompts)),
                truncated=sum(answer.finish_reason != "stop" for answer in completions) / len(prompts),
                groups_alike=groups_alike,
                **told.means(),
                **gold(chosen, completions),
                step_seconds=time.monotonic() - started,
            )
    with atomic_folder(folder / "model") as target:
        save_model(merged_copy(policy), tokenizer, target)
    tuning.close(prompts=len(items))


def as_rows(
    shape: ModelShape, prompts: Sequence[Ids], answers: Sequence[Ids], advantages_B: Tensor, group: int
) -> tuple[Branches, Tensor]:
    """Groups of neighbours as rows of as many answers as is cheapest, the shortest first; and their advantages, which
    count for each of an answer's tokens (B, T)."""
    rows: list[tuple[Ids, Sequence[Ids], Tensor]] = []
    for start in range(0, len(prompts), group):
        own, prompt = answers[start : start + group], prompts[start]
        size = answers_a_row(shape, len(prompt), max(map(len, own)), group)
        for first in range(0, group, size):
            advantages = advantages_B[start + first : start + min(first + size, group)]
            rows.append((prompt, own[first : first + size], advantages))
    rows.sort(key=lambda row: row_length(row[0], row[1]))
    branches = branch_rows([(prompt, own) for prompt, own, _ in rows], default_device())
    # Branch 0, which is no answer's, has none.
    by_branch = [F.pad(advantages, (1, group - len(advantages))) for _, _, advantages in rows]
    return branches, torch.stack(by_branch).gather(1, branches.branch_BT)


def update(
    settings: GrpoSettings, tuning: Tuning, policy: Transformer, judged: Judged, told: Told, is_first: bool
) -> None:
    """One update: sums over answer tokens, divided once by their number in the batch. (The paper divides by each
    answer's own length, which makes tokens of long wrong answers cheap: Liu et al. 2025, "Dr. GRPO", section 3.1.)"""
    n_tokens = int(judged.mask_BT.sum())
    counts: dict[int, tuple[Tensor, ...]] = {}

    def loss_of(micro: tuple[int, Judged]) -> Tensor:
        number, part = micro
        log_probs_BT, entropy_BT = answer_log_probs(policy, part.answers)
        if is_first:  # the pieces are views of the whole
            part.log_probs_BT.copy_(log_probs_BT.detach())
            part.entropy_BT.copy_(entropy_BT)
        loss, clipped = clipped_policy_loss(
            log_probs_BT, part.log_probs_BT, part.advantages_BT, part.mask_BT, settings.clip
        )
        penalty = kl_penalty(log_probs_BT, part.reference_BT, part.mask_BT)
        counts[number] = loss.detach(), clipped, penalty.detach()
        return loss + settings.kl_coefficient * penalty

    rows = cut_for(policy, judged.mask_BT.shape, settings.micro_batch_tokens).rows
    loss = tuning.backward(loss_of, list(enumerate(in_pieces(judged, rows))), n_tokens, "policy") / n_tokens
    told.add("grad_norm", tuning.update(loss), 1)
    for number in sorted(counts):
        for name, total in zip(("policy_loss", "clip_share", "kl_penalty"), counts[number], strict=True):
            told.add(name, float(total), 0)
    for name in ("policy_loss", "clip_share", "kl_penalty"):
        told.add(name, 0.0, n_tokens)
