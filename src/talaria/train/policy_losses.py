"""Losses of learning from preferences and rewards, as sums over counted tokens, prompts or pairs; callers divide once.

Shapes: B rows, T positions, K answers to one prompt, P pairs of them. `mask_BT` is true at the answer's own tokens;
what stands elsewhere never matters, whatever its value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def advantages(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16), 0 outside the mask.

    `rewards_BT[b, t]` comes for choosing token t, `values_BT[b, t]` is the value of the state before it. An answer is
    one stretch of the mask; after its last token there is nothing more to come, so the value there is 0.
    """
    result_BT = torch.zeros_like(rewards_BT)
    ahead_B = rewards_BT.new_zeros(len(rewards_BT))
    next_value_B = torch.zeros_like(ahead_B)
    for t in reversed(range(rewards_BT.shape[1])):
        inside_B = mask_BT[:, t]
        surprise_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        ahead_B = torch.where(inside_B, surprise_B + gamma * lam * ahead_B, 0.0)
        next_value_B = torch.where(inside_B, values_BT[:, t], 0.0)
        result_BT[:, t] = ahead_B
    return result_BT


def whitened(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the masked entries, 0 elsewhere."""
    inside = x_BT[mask_BT]
    deviation = inside.std(correction=0) if inside.numel() > 1 else inside.new_ones(())
    return torch.where(mask_BT, (x_BT - inside.mean()) / (deviation + 1e-8), 0.0)


def clipped_policy_loss(
    log_probs_BT: Tensor, old_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Sum of -min(ratio A, clip(ratio) A) (Schulman et al. 2017, eq. 7), and how many tokens the clipping stopped."""
    ratio = (log_probs_BT - old_BT)[mask_BT].exp()
    advantage = advantages_BT[mask_BT]
    plain, clipped = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
    return -torch.minimum(plain, clipped).sum(), (clipped < plain).sum()


def clipped_value_loss(
    values_BT: Tensor, old_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Sum of squared errors over 2, the larger one of the value and of the value kept within `clip` of the old one; and
    how many tokens the clipping stopped. Without `clip` the plain one."""
    values, old, returns = values_BT[mask_BT], old_BT[mask_BT], returns_BT[mask_BT]
    plain = (values - returns).square()
    if clip is None:
        return 0.5 * plain.sum(), plain.new_zeros(())
    clipped = (old + (values - old).clamp(-clip, clip) - returns).square()
    return 0.5 * torch.maximum(plain, clipped).sum(), (clipped > plain).sum()


def kl_penalty(log_probs_BT: Tensor, reference_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over tokens of r - 1 - log r with r = reference/policy: an estimate of KL(policy, reference) that is never
    negative, and unbiased on the policy's own samples (Schulman 2020, "Approximating KL divergence", k3)."""
    log_ratio = (reference_BT - log_probs_BT)[mask_BT]
    return (log_ratio.exp() - 1 - log_ratio).sum()


def ranking_loss(scores_K: Tensor, pairs_P2: Tensor, preferred_P: Tensor) -> Tensor:
    """Mean over the pairs of one prompt's answers of -log sigmoid(r_better - r_worse) (Ouyang et al. 2022, eq. 1).

    pairs_P2 holds places in scores_K; preferred_P is the share of preference that the first of a pair has: 1, 0, or 0.5
    for a tie, which asks for equal scores.
    """
    difference_P = scores_K[pairs_P2[:, 0]] - scores_K[pairs_P2[:, 1]]
    return F.binary_cross_entropy_with_logits(difference_P, preferred_P.to(difference_P))


def preference_loss(
    log_probs_K: Tensor, reference_K: Tensor, pairs_P2: Tensor, preferred_P: Tensor, beta: float
) -> Tensor:
    """DPO (Rafailov et al. 2023, eq. 7) over all pairs of one prompt: `ranking_loss` of the implicit rewards
    beta (log policy - log reference) of whole answers."""
    return ranking_loss(beta * (log_probs_K - reference_K), pairs_P2, preferred_P)


def group_advantages(rewards_BK: Tensor) -> Tensor:
    """GRPO (Shao et al. 2024, section 4.1.2): each answer's reward against its group of K answers to the same prompt,
    in the group's deviations; 0 where all are alike."""
    centred_BK = rewards_BK - rewards_BK.mean(dim=1, keepdim=True)
    # Equal rewards differ from their mean, and those of a reward model from one another, by rounding.
    spread_B1 = rewards_BK.amax(dim=1, keepdim=True) - rewards_BK.amin(dim=1, keepdim=True)
    advantages_BK = centred_BK / (rewards_BK.std(dim=1, correction=0, keepdim=True) + 1e-6)
    return torch.where(spread_B1 > 1e-5, advantages_BK, 0.0)
