"""Items and a model in, every metric of them out: what is all or nothing beside what moves with every small change.

An answer is decoded greedily exactly if each of its tokens is the likeliest behind the right ones before it, so one
forward pass over the right answers gives every metric. Shapes: N items, A tokens of an answer, W wrong answers, T
positions, V vocabulary.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from talaria.model.transformer import Transformer
from talaria.world.symbols import ALPHABET, SEPARATOR, Item

_ID = {symbol: number for number, symbol in enumerate(ALPHABET)}


@dataclass(frozen=True)
class Scored:
    """One metric's mean over `n` items, and its standard error."""

    metric: str
    score: float
    stderr: float
    n: int


def encode(text: str) -> list[int]:
    """The ids of a text of `ALPHABET`, a symbol each."""
    return [_ID[symbol] for symbol in text]


@torch.inference_mode()
def score_items(model: Transformer, items: Sequence[Item]) -> list[Scored]:
    """Metrics of items of one task, whose prompts and answers are of one length.

    exact_match: the whole greedy answer is right. choice_accuracy: the right answer is likelier than each wrong one.
    answer_log_prob: nats a token of the right answer. answer_margin: nats by which it is likelier than the likeliest
    wrong one. Of answers of several tokens also step_accuracy, the share of tokens that are right behind right ones,
    and partial_credit, the share before the first mistake.
    """
    log_probs_NA, right_NA = _answers(model, [item.prompt for item in items], [item.answer for item in items])
    wrong_NW = torch.stack(
        [
            _answers(model, [item.prompt for item in items], [item.wrong[number] for item in items])[0].sum(dim=1)
            for number in range(len(items[0].wrong))
        ],
        dim=1,
    )
    margin_N = log_probs_NA.sum(dim=1) - wrong_NW.amax(dim=1)
    metrics = {
        "exact_match": right_NA.all(dim=1),
        "choice_accuracy": margin_N > 0,
        "answer_log_prob": log_probs_NA.mean(dim=1),
        "answer_margin": margin_N,
    }
    if right_NA.shape[1] > 1:
        metrics["step_accuracy"] = right_NA.double().mean(dim=1)
        metrics["partial_credit"] = right_NA.double().cumprod(dim=1).mean(dim=1)
    return [_mean(name, values_N.double().tolist()) for name, values_N in metrics.items()]


def _answers(model: Transformer, prompts: Sequence[str], answers: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Log-probability (N, A), fp64, of each token of the answers, and whether it is the likeliest."""
    ids_NT = torch.tensor([encode(SEPARATOR + p + a) for p, a in zip(prompts, answers, strict=True)])
    n_answer = len(answers[0])
    logits_NAV = model(ids_NT[:, :-1])[:, -n_answer:]
    gold_NA = ids_NT[:, -n_answer:]
    log_probs_NAV = logits_NAV.double().log_softmax(dim=-1)
    return log_probs_NAV.gather(2, gold_NA[..., None]).squeeze(2), logits_NAV.argmax(dim=-1) == gold_NA


def _mean(metric: str, values: Sequence[float]) -> Scored:
    return Scored(metric, statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)), len(values))
