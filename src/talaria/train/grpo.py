"""GRPO (Shao et al. 2024): several answers a prompt, each judged against the others of its group; no value network.

The reward is a verifier's, the grader that stands with each prompt (right or wrong), or the reward model's. Rollouts,
scores and the clipped loss are PPO's. Writes model/, checkpoints/, metrics.jsonl and training.json.

Shapes: B answers, T places, K answers of a group, which are neighbours until they have their advantages.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from talaria.errors import UserError
from talaria.infer.contract import row_seed
from talaria.model.checkpoint import load_model, save_model
from talaria.model.device import default_device
from talaria.model.lora import add_lora, merged_copy, without_lora
from talaria.model.scalar import load_scalar_model
from talaria.model.transformer import Transformer
from talaria.run import atomic_folder
from talaria.train.answers import Answers, answer_log_probs, in_pieces, over_pieces, pad_answers, shortest_first
from talaria.train.policy_losses import clipped_policy_loss, group_advantages, kl_penalty
from talaria.train.ppo import Told, draw_prompts, gold, read_prompts, reward_of, sample
from talaria.train.settings import GrpoSettings
from talaria.train.tuning import Tuning, micro_rows
from talaria.world.judge import check


class Group(NamedTuple):
    """Answers and what was known of them before the updates: (B, T), and advantages (B,). Log-probabilities and
    entropies of the policy are written by the first update, which reads the answers before it changes anything."""

    inputs_BT: Tensor
    targets_BT: Tensor
    mask_BT: Tensor
    log_probs_BT: Tensor
    entropy_BT: Tensor
    reference_BT: Tensor
    advantages_B: Tensor

    @property
    def answers(self) -> Answers:
        return Answers(self.inputs_BT, self.targets_BT, self.mask_BT)


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
    )
    items = read_prompts(prompt_files, tokenizer, policy.shape.context - settings.max_tokens)
    if rewarder is None and not all("grader" in item for item in items):
        raise UserError('grpo.reward = "verifier" needs prompts with a grader and an answer; take "model"')

    with tuning.progress:
        while not tuning.finished:
            started = time.monotonic()
            drawn = draw_prompts(items, settings.rollouts, tuning.step, seed)
            chosen = [item for item in drawn for _ in range(settings.group)]
            prompts = [item["ids"] for item in chosen]
            completions = sample(policy, tokenizer, prompts, settings.max_tokens, row_seed(seed, tuning.step + 1))
            longest = max(len(item["ids"]) for item in chosen) + settings.max_tokens
            rows = micro_rows(len(prompts), longest, settings.micro_batch_tokens, 1)
            if rewarder is None:
                # A grader reads what is there, but an answer that was cut is not one that ended.
                rewards = [
                    float(check(item, answer.text)) if answer.finish_reason == "stop" else settings.truncated_reward
                    for item, answer in zip(chosen, completions, strict=True)
                ]
                scores_B = torch.tensor(rewards, device=default_device())
            else:
                scores_B = reward_of(rewarder, tokenizer, chosen, completions, settings.truncated_reward, rows)
            advantages_B = group_advantages(scores_B.view(-1, settings.group)).flatten()
            groups_alike = float((advantages_B.view(-1, settings.group) == 0).all(dim=1).float().mean())
            # From here on the rows stand by their length; a group was needed for its advantages alone.
            order = shortest_first(prompts, [answer.token_ids for answer in completions])
            chosen, completions = [chosen[row] for row in order], [completions[row] for row in order]
            prompts, advantages_B = [item["ids"] for item in chosen], advantages_B[order]
            answers = pad_answers(prompts, [answer.token_ids for answer in completions], default_device())
            with without_lora(reference):
                reference_BT = over_pieces(lambda piece: answer_log_probs(reference, piece)[0], answers, rows)
            unknown_BT = torch.zeros_like(reference_BT)
            group = Group(*answers, unknown_BT, unknown_BT.clone(), reference_BT, advantages_B)
            told = Told()
            for epoch in range(settings.epochs):
                update(settings, tuning, policy, group, told, is_first=epoch == 0)
            kl = float((group.log_probs_BT - reference_BT).sum() / len(prompts))
            tuning.end_step(
                f"reward {float(scores_B.mean()):+.3f}  KL {kl:.3f}",
                reward=float(scores_B.mean()),
                kl=kl,
                entropy=float(group.entropy_BT.sum() / answers.mask_BT.sum()),
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


def update(
    settings: GrpoSettings, tuning: Tuning, policy: Transformer, group: Group, told: Told, is_first: bool
) -> None:
    """One update: sums over answer tokens, divided once by their number in the batch. (The paper divides by each
    answer's own length, which makes tokens of long wrong answers cheap: Liu et al. 2025, "Dr. GRPO", section 3.1.)"""
    n_tokens = int(group.mask_BT.sum())
    counts: dict[int, tuple[Tensor, ...]] = {}

    def loss_of(micro: tuple[int, Group]) -> Tensor:
        number, part = micro
        log_probs_BT, entropy_BT = answer_log_probs(policy, part.answers)
        if is_first:  # the pieces are views of the whole
            part.log_probs_BT.copy_(log_probs_BT.detach())
            part.entropy_BT.copy_(entropy_BT)
        advantages_BT = part.advantages_B[:, None].expand_as(log_probs_BT)
        loss, clipped = clipped_policy_loss(log_probs_BT, part.log_probs_BT, advantages_BT, part.mask_BT, settings.clip)
        penalty = kl_penalty(log_probs_BT, part.reference_BT, part.mask_BT)
        counts[number] = loss.detach(), clipped, penalty.detach()
        return loss + settings.kl_coefficient * penalty

    rows = len(group.mask_BT)
    size = micro_rows(rows, group.mask_BT.shape[1], settings.micro_batch_tokens, tuning.cores(rows))
    loss = tuning.backward(loss_of, list(enumerate(in_pieces(group, size))), n_tokens, "policy") / n_tokens
    told.add("grad_norm", tuning.update(loss), 1)
    for number in sorted(counts):
        for name, total in zip(("policy_loss", "clip_share", "kl_penalty"), counts[number], strict=True):
            told.add(name, float(total), 0)
    for name in ("policy_loss", "clip_share", "kl_penalty"):
        told.add(name, 0.0, n_tokens)
