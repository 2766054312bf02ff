"""How far a reward model can be trusted, from comparisons it was not trained on.

Accuracy with an interval over prompts, together and for each objective; accuracy by margin; a calibration curve; and an
out-of-distribution score (Bai et al. 2022, section 5.2: the Mahalanobis distance of the state that is scored from those
of the training answers) with how well it tells strange conversations from held-out ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from talaria.model.scalar import ScalarModel
from talaria.train.answers import over_ids, read_scored, what_is_scored

if TYPE_CHECKING:
    from talaria.train.reward import Compared

_BINS = 10


def measure_quality(
    model: ScalarModel, known_NX: Tensor, held_out: Sequence[Compared], micro_tokens: int
) -> dict[str, Any]:
    """Everything above as a JSON value. `known_NX`: what is scored of the training answers; the model reads at most
    `micro_tokens` tokens at a time."""

    def seen(ids: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        return over_ids(lambda answers: what_is_scored(model, answers), ids, micro_tokens)

    own_NX, width = seen([ids for prompt in held_out for ids in prompt.ids]), len(model.weight_D)
    scores = read_scored(model, own_NX).detach().double().cpu().numpy()
    rows, start = [], 0
    for number, prompt in enumerate(held_out):
        for i, j, share in prompt.pairs:
            rows.append((number, prompt.objective, float(scores[start + i] - scores[start + j]), share))
        start += len(prompt.texts)
    result = of_pairs(rows)
    strange = _strange(held_out, max(len(asked) + len(answer) for prompt in held_out for asked, answer in prompt.ids))
    strange_ND = seen(strange)[:, :width] if strange else None
    result["out_of_distribution"] = _out_of_distribution(known_NX[:, :width], own_NX[:, :width], strange_ND)
    return result


def of_pairs(rows: list[tuple[int, str, float, float]]) -> dict[str, Any]:
    """Accuracies, together and by objective, and what the margins tell, of pairs as (prompt's number, objective, margin
    of the first, share of preference of the first)."""
    result: dict[str, Any] = {"together": _accuracy(rows)}
    for objective in sorted({row[1] for row in rows}):
        result[objective] = _accuracy([row for row in rows if row[1] == objective])
    return result | {"by_margin": _by_margin(rows), "calibration": _calibration(rows)}


def _accuracy(rows: list[tuple[int, str, float, float]]) -> dict[str, Any]:
    """Share of decided pairs whose better answer scores higher. Pairs of a prompt are alike, so the interval is a
    bootstrap over prompts."""
    decided = [(number, (margin > 0) == (share > 0.5)) for number, _, margin, share in rows if share != 0.5]
    if not decided:
        return {"accuracy": None, "interval": None, "pairs": 0, "ties": len(rows)}
    numbers, inverse = np.unique([number for number, _ in decided], return_inverse=True)
    right = np.bincount(inverse, weights=[is_right for _, is_right in decided], minlength=len(numbers))
    count = np.bincount(inverse, minlength=len(numbers))
    draw = np.random.default_rng(0).integers(0, len(numbers), (2000, len(numbers)))
    low, high = np.quantile(right[draw].sum(1) / count[draw].sum(1), [0.025, 0.975])
    return {
        "accuracy": float(right.sum() / count.sum()),
        "interval": [float(low), float(high)],
        "pairs": len(decided),
        "prompts": len(numbers),
        "ties": len(rows) - len(decided),
    }


def _by_margin(rows: list[tuple[int, str, float, float]]) -> list[dict[str, float]]:
    """Accuracy in quarters of the pairs by the distance of their scores."""
    decided = sorted((abs(margin), (margin > 0) == (share > 0.5)) for _, _, margin, share in rows if share != 0.5)
    quarters = [part for part in np.array_split(np.array(decided, dtype=float).reshape(-1, 2), 4) if len(part)]
    return [
        {"from": float(part[0, 0]), "to": float(part[-1, 0]), "accuracy": float(part[:, 1].mean()), "pairs": len(part)}
        for part in quarters
    ]


def _calibration(rows: list[tuple[int, str, float, float]]) -> dict[str, Any]:
    """Told probability sigmoid(margin) against the share of choices; each pair in the direction in which it is at least
    one half, ties as half a choice. `error` is the mean distance, weighted by pairs."""
    told = np.array([1 / (1 + np.exp(-abs(margin))) for _, _, margin, _ in rows])
    chosen = np.array([0.5 if margin == 0 else share if margin > 0 else 1 - share for _, _, margin, share in rows])
    bins = np.minimum((told - 0.5) * 2 * _BINS, _BINS - 1).astype(int)
    curve = [
        {
            "told": float(told[bins == n].mean()),
            "chosen": float(chosen[bins == n].mean()),
            "pairs": int((bins == n).sum()),
        }
        for n in range(_BINS)
        if (bins == n).any()
    ]
    error = sum(abs(point["told"] - point["chosen"]) * point["pairs"] for point in curve) / max(1, len(rows))
    return {"curve": curve, "error": error}


def _out_of_distribution(known_ND: Tensor, own_ND: Tensor, strange_ND: Tensor | None) -> dict[str, float | None]:
    """How often a conversation with another prompt's answer lies further out than one with its own."""
    known_ND = known_ND.double().cpu()
    mean_D = known_ND.mean(dim=0)
    centred_ND = known_ND - mean_D
    covariance_DD = centred_ND.T @ centred_ND / len(known_ND)
    covariance_DD += torch.eye(len(mean_D), dtype=torch.float64) * covariance_DD.diagonal().mean() * 1e-3
    precision_DD = torch.linalg.inv(covariance_DD)
    near = distances(own_ND.double().cpu(), mean_D, precision_DD)
    if strange_ND is None:
        return {"held_out": float(near.mean()), "strange": None, "auroc": None}
    far = distances(strange_ND.double().cpu(), mean_D, precision_DD)
    near_N = np.sort(near.numpy())
    below = np.searchsorted(near_N, far.numpy(), "left") + np.searchsorted(near_N, far.numpy(), "right")
    return {
        "held_out": float(near.mean()),
        "strange": float(far.mean()),
        "auroc": float(below.mean() / (2 * len(near_N))),
    }


def _strange(held_out: Sequence[Compared], context: int) -> list[tuple[list[int], list[int]]]:
    """Every held-out prompt with an answer to another one that it does not have itself, where that fits."""
    pairs: list[tuple[list[int], list[int]]] = []
    for number, prompt in enumerate(held_out):
        other = held_out[(number + len(held_out) // 2) % len(held_out)]
        for asked, _ in prompt.ids:
            answers = [
                answer for text, (_, answer) in zip(other.texts, other.ids, strict=True) if text not in prompt.texts
            ]
            if other is not prompt and answers:
                pairs.append((asked, answers[len(pairs) % len(answers)]))
    return [(asked, answer) for asked, answer in pairs if len(asked) + len(answer) <= context]


def distances(states_ND: Tensor, mean_D: Tensor, precision_DD: Tensor) -> Tensor:
    """Mahalanobis distances (N,), over the width, so that about 1 is ordinary."""
    centred_ND = states_ND - mean_D
    return (centred_ND @ precision_DD * centred_ND).sum(dim=1) / len(mean_D)
