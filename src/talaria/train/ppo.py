"""PPO from human feedback, the whole algorithm: a fine-tuned model, a reward model and prompts in, a better policy out.

First the value network's head is fitted to answers of the policy. Each step: the policy answers prompts; the reward
model scores the answers; every token pays for leaving the fine-tuned model; advantages are estimated with the value
network; several epochs of clipped updates follow (Ziegler et al. 2019; Stiennon et al. 2020; Ouyang et al. 2022). With
`ptx_coefficient` next-token loss on pretraining text is mixed in.
Writes model/, checkpoints/, metrics.jsonl and training.json.

Shapes: B answers, T places (`train/answers.py`: everything stands at the place of the token that is predicted).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from talaria.errors import UserError
from talaria.files import atomic_folder
from talaria.infer.contract import row_seed
from talaria.model.checkpoint import load_model, save_model
from talaria.model.device import default_device
from talaria.model.lora import add_lora, merged_copy, without_lora
from talaria.model.scalar import ScalarModel, head_apart, load_scalar_model
from talaria.model.transformer import Transformer
from talaria.tokens.batches import Batch, PackedBatches
from talaria.tokens.shards import Shards
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.answers import (
    Answers,
    answer_log_probs,
    in_pieces,
    last_places,
    likelihood_so_far,
    over_pieces,
    read_scored,
)
from talaria.train.cores import Cut, cut_for
from talaria.train.policy_losses import advantages, clipped_policy_loss, clipped_value_loss, whitened
from talaria.train.rollouts import Policy, answer, draw_prompts, gold, read_prompts, reward_of, sampler
from talaria.train.settings import PpoSettings
from talaria.train.step import split_rows, summed_loss
from talaria.train.tuning import Tuning
from talaria.train.value_head import fit_value

_PIECE_ROWS = 8  # rows of like length that go through a network together on a CPU


class Rollouts(NamedTuple):
    """Answers of the policy and what was known of them before the updates: all (B, T), 0 outside the answers, but for
    the likelihood of what stands before each token (B, T, 5)."""

    inputs_BT: Tensor
    targets_BT: Tensor
    mask_BT: Tensor
    so_far_BTF: Tensor
    log_probs_BT: Tensor
    values_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor

    @property
    def answers(self) -> Answers:
        return Answers(self.inputs_BT, self.targets_BT, self.mask_BT)


def ppo(
    settings: PpoSettings,
    base: Path,
    reward: Path,
    prompt_files: Sequence[Path],
    replay: Path | None,
    seed: int,
    folder: Path,
    start: Path | None = None,
) -> None:
    """Improve the model at `base`, or the one at `start` that was made of it, against the reward model at `reward`; KL
    is to `base`. `replay` has the shards of PPO-ptx."""
    policy, tokenizer = load_model(start or base)
    value = load_scalar_model(reward)[0]
    if not value.trunk.shape.tie_embeddings:  # The table of output tokens takes no part in a value.
        value.trunk.head_weight().requires_grad_(False)
    if settings.lora is None:
        rewarder = load_scalar_model(reward)[0].to(default_device()).requires_grad_(False)
    else:  # The reward model is the value network's trunk without its LoRA.
        for number, trunk in enumerate((policy, value.trunk)):
            add_lora(trunk, settings.lora.rank, settings.lora.alpha, torch.Generator().manual_seed(seed + number))
        rewarder = head_apart(value).to(default_device())
    if settings.lora is None or start is not None:
        reference = load_model(base)[0].to(default_device()).requires_grad_(False)
    else:  # The fine-tuned model is the policy without its LoRA.
        reference = policy
    rate = settings.optimizer.learning_rate or 1e-4
    tuning = Tuning(
        "ppo",
        folder,
        {"policy": policy, "value": value},
        policy,
        tokenizer,
        settings.optimizer,
        settings.steps,
        learning_rates={"policy": rate, "value": settings.value_learning_rate or rate},
        checkpoint_every_seconds=settings.checkpoint_every_seconds,
        seed=seed,
    )
    speaker = sampler(policy)
    items = read_prompts(prompt_files, tokenizer, policy.shape.context - settings.max_tokens)
    ptx = _pretraining_text(settings, replay, policy.shape.context, seed, tuning)
    kl_coefficient = tuning.memory.setdefault("kl_coefficient", settings.kl_coefficient)
    if tuning.step == 0:
        fit_value(value, warmup(settings, policy, speaker, reference, value, rewarder, tokenizer, items, seed))

    with tuning.progress:
        while not tuning.finished:
            started = time.monotonic()
            # 1. The policy answers, one answer a prompt, at temperature 1: other samples would not be its own.
            chosen = draw_prompts(items, settings.rollouts, tuning.step, seed)
            number = row_seed(seed, tuning.step + 1)
            chosen, completions, answers = answer(speaker, tokenizer, chosen, settings.max_tokens, number)
            sampled = time.monotonic()

            # 2. What reward model, policy, fine-tuned model and value network say, before any update.
            cut = cut_for(policy, answers.inputs_BT.shape, settings.micro_batch_tokens)
            scores_B = reward_of(rewarder, tokenizer, chosen, completions, settings.truncated_reward, cut)
            rollouts, log_ratio_BT, entropy_BT = assess(
                settings, policy, reference, value, answers, scores_B, kl_coefficient, cut
            )

            # 3. Several epochs over the same answers, in minibatches.
            told = Told()
            for epoch in range(settings.epochs):
                shuffled = torch.tensor(
                    random.Random(f"{seed}/{tuning.step}/{epoch}").sample(range(len(chosen)), len(chosen))
                )
                for part in torch.tensor_split(shuffled, settings.minibatches):
                    minibatch = Rollouts(*(x[part.sort().values] for x in rollouts))
                    update(settings, tuning, policy, value, minibatch, ptx, told)

            # 4. The coefficient follows its target (Ziegler et al. 2019, section 2.2); metrics; a checkpoint if due.
            kl, kl_coefficient_was = float(log_ratio_BT.sum() / len(chosen)), kl_coefficient
            if settings.kl_target is not None:
                error = max(-0.2, min(0.2, kl / settings.kl_target - 1))
                kl_coefficient *= 1 + error * len(chosen) / settings.kl_horizon
            tuning.memory.update(kl_coefficient=kl_coefficient, ptx=None if ptx is None else ptx.state())
            sampled_N = torch.tensor([p for answer in completions for p in answer.log_probs]).to(log_ratio_BT)
            gap = (sampled_N - rollouts.log_probs_BT[answers.mask_BT]).abs()
            tuning.end_step(
                f"reward {float(scores_B.mean()):+.3f}  KL {kl:.3f}",
                reward=float(scores_B.mean()),
                kl=kl,
                kl_coefficient=kl_coefficient_was,
                entropy=float(entropy_BT.sum() / answers.mask_BT.sum()),
                answer_tokens=float(answers.mask_BT.sum() / len(chosen)),
                truncated=sum(answer.finish_reason != "stop" for answer in completions) / len(chosen),
                explained_variance=explained_variance(rollouts),
                sampler_gap_max=float(gap.max()),
                sampler_gap_mean=float(gap.mean()),
                **told.means(),
                **gold(chosen, completions),
                rollout_seconds=sampled - started,
                step_seconds=time.monotonic() - started,
            )

    with atomic_folder(folder / "model") as target:
        save_model(merged_copy(policy), tokenizer, target)
    tuning.memory.pop("ptx", None)
    tuning.close(prompts=len(items))


def assess(
    settings: PpoSettings,
    policy: Transformer,
    reference: Transformer,
    value: ScalarModel,
    answers: Answers,
    scores_B: Tensor,
    kl_coefficient: float,
    cut: Cut,
) -> tuple[Rollouts, Tensor, Tensor]:
    """Advantages and returns of answers, with their log-ratios (B, T) to the reference and entropies (B, T)."""
    both = over_pieces(lambda piece: torch.stack(answer_log_probs(policy, piece), dim=-1), answers, cut)
    log_probs_BT, entropy_BT = both.unbind(dim=-1)
    with without_lora(reference):
        reference_BT = over_pieces(lambda piece: answer_log_probs(reference, piece)[0], answers, cut)
    # The value of the state before each token: the value network has not read the token itself.
    so_far_BTF = likelihood_so_far(reference_BT, answers.mask_BT)
    known = Rollouts(*answers, so_far_BTF, *[log_probs_BT] * 4)
    values_BT = over_pieces(lambda piece: read_scored(value, states(value, piece)) * piece.mask_BT, known, cut)
    # Each token pays for its log-ratio to the fine-tuned model; the last one earns the score of the whole answer.
    log_ratio_BT = log_probs_BT - reference_BT
    rewards_BT = -kl_coefficient * log_ratio_BT
    rows_B = torch.arange(len(scores_B), device=scores_B.device)
    rewards_BT[rows_B, last_places(answers.mask_BT)] += scores_B.to(rewards_BT)
    advantages_BT = advantages(rewards_BT, values_BT, answers.mask_BT, settings.gamma, settings.gae_lambda)
    returns_BT = advantages_BT + values_BT
    whitened_BT = whitened(advantages_BT, answers.mask_BT)
    rollouts = Rollouts(*answers, so_far_BTF, log_probs_BT, values_BT, whitened_BT, returns_BT)
    return rollouts, log_ratio_BT, entropy_BT


def states(value: ScalarModel, rollouts: Rollouts) -> Tensor:
    """What the value network reads of the state before each token: (B, T, D), and (B, T, D + 5) where the reward model
    reads likelihood. An unlikely token costs reward at once then, and not only when the answer has ended."""
    hidden_BTD = value.trunk.hidden(rollouts.inputs_BT)
    if value.likelihood_F is None:
        return hidden_BTD
    return torch.cat([hidden_BTD, rollouts.so_far_BTF.to(hidden_BTD)], dim=-1)


def warmup(
    settings: PpoSettings,
    policy: Transformer,
    speaker: Policy,
    reference: Transformer,
    value: ScalarModel,
    rewarder: ScalarModel,
    tokenizer: Tokenizer,
    items: list[dict[str, Any]],
    seed: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """States (N, D or D + 5) and what their answers earned from there on (N,), of answers that change no policy."""
    whole = settings.model_copy(update={"gae_lambda": 1.0})  # returns as they came, not as the network expects them
    for step in range(settings.value_warmup):
        chosen = draw_prompts(items, settings.rollouts, step, seed + 1)
        number = row_seed(seed, settings.steps + step + 1)
        chosen, completions, answers = answer(speaker, tokenizer, chosen, settings.max_tokens, number)
        cut = cut_for(policy, answers.inputs_BT.shape, settings.micro_batch_tokens)
        scores_B = reward_of(rewarder, tokenizer, chosen, completions, settings.truncated_reward, cut)
        rollouts, _, _ = assess(whole, policy, reference, value, answers, scores_B, settings.kl_coefficient, cut)
        read = over_pieces(lambda piece: states(value, piece), rollouts, cut)
        yield read[rollouts.mask_BT], rollouts.returns_BT[rollouts.mask_BT]


def update(
    settings: PpoSettings,
    tuning: Tuning,
    policy: Transformer,
    value: ScalarModel,
    batch: Rollouts,
    ptx: PackedBatches | None,
    told: Told,
) -> None:
    """One update of policy and value network from a minibatch: sums over its tokens, divided once by their number."""
    n_tokens = int(batch.mask_BT.sum())
    counts: dict[int, tuple[Tensor, ...]] = {}

    def loss_of(micro: tuple[int, Rollouts]) -> Tensor:
        number, rollouts = micro
        log_probs_BT, _ = answer_log_probs(policy, rollouts.answers)
        policy_loss, clipped = clipped_policy_loss(
            log_probs_BT, rollouts.log_probs_BT, rollouts.advantages_BT, rollouts.mask_BT, settings.clip
        )
        values_BT = read_scored(value, states(value, rollouts))
        value_loss, value_clipped = clipped_value_loss(
            values_BT, rollouts.values_BT, rollouts.returns_BT, rollouts.mask_BT, settings.value_clip
        )
        moved = (rollouts.log_probs_BT - log_probs_BT.detach())[rollouts.mask_BT].sum()
        counts[number] = policy_loss.detach(), value_loss.detach(), clipped, value_clipped, moved
        return policy_loss + settings.value_coefficient * value_loss

    rows = cut_for(policy, batch.mask_BT.shape, settings.micro_batch_tokens).rows
    if default_device().type == "cpu":
        rows = min(rows, _PIECE_ROWS)
    pieces = in_pieces(batch, rows)
    loss = tuning.backward(loss_of, list(enumerate(pieces)), n_tokens, "") / n_tokens
    if ptx is not None:
        # Its own mean, whatever the number of answer tokens, times the coefficient (Ouyang et al. 2022, eq. 2).
        text = Batch(*(tensor.to(default_device()) for tensor in next(ptx)))
        n_text = int(text.loss_mask_BT.sum())
        rows = cut_for(policy, text.inputs_BT.shape, settings.micro_batch_tokens).rows
        text_loss = tuning.backward(
            lambda micro: summed_loss(policy, micro, document_attention=True),
            split_rows(text, rows),
            n_text / settings.ptx_coefficient,
            "policy",
        )
        loss += settings.ptx_coefficient * text_loss / n_text
        told.add("ptx_loss", text_loss, n_text)
    norm = tuning.update(loss)
    names = "policy_loss", "value_loss", "clip_share", "value_clip_share", "update_kl"
    for number in sorted(counts):  # in order, for the sums of floats to be the same on every run
        for name, total in zip(names, counts[number], strict=True):
            told.add(name, float(total), 0)
    for name in names:
        told.add(name, 0.0, n_tokens)
    told.add("grad_norm", norm, 1)


class Told:
    """Sums and counts of what the updates of a step tell, for one row of metrics."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, name: str, total: float, count: int) -> None:
        entry = self._sums.setdefault(name, [0.0, 0])
        entry[0], entry[1] = entry[0] + total, entry[1] + count

    def means(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self._sums.items()}


def explained_variance(rollouts: Rollouts) -> float:
    """1 - Var(returns - values) / Var(returns): 0 is a value network that knows nothing."""
    returns, values = rollouts.returns_BT[rollouts.mask_BT], rollouts.values_BT[rollouts.mask_BT]
    return float(1 - (returns - values).var() / returns.var().clamp_min(1e-12))


def _pretraining_text(
    settings: PpoSettings, replay: Path | None, context: int, seed: int, tuning: Tuning
) -> PackedBatches | None:
    if not settings.ptx_coefficient:
        return None
    if replay is None:
        raise UserError("ppo.ptx_coefficient needs pretraining text; add [tokenizer] and [corpus], or set it to 0")
    batches = PackedBatches(Shards(replay, "train"), context, settings.ptx_rows, seed + 1)
    if tuning.memory.get("ptx"):
        batches.load_state(tuning.memory["ptx"])
    return batches
