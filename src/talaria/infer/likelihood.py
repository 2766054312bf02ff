"""Log-likelihoods of given texts: pairs of ids, or a prompt, in, scores out, by forward passes without a cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from talaria.infer.contract import LogLikelihood, TopLogProbs
from talaria.infer.memory import POSITIONS_AT_ONCE
from talaria.infer.sampling import token_log_probs, top_log_probs
from talaria.model.compiled import CompiledTransformer, torch_rests
from talaria.model.transformer import Transformer

# Logits held at once.
_LOGITS_AT_ONCE = 1 << 25

PromptLogProbs = tuple[list[float], list[TopLogProbs]]
"""Log-probabilities of all tokens of a prompt but the first, and the likeliest tokens of each of these places."""


@torch.inference_mode()
def prompt_log_probs(
    model: Transformer | CompiledTransformer, ids: Sequence[int], n_top: int, n_choices: int
) -> PromptLogProbs:
    """How probable a prompt's own tokens are, and the n_top likeliest of the first n_choices ids at each place.

    Needs at least one id, within the vocabulary, and at most a context of them; the lists are one shorter.
    """
    with torch_rests(model):
        hidden_TD = model.hidden(torch.tensor([list(ids)], device=model.device))[0, :-1]
        targets_T = torch.tensor(ids[1:], device=hidden_TD.device)
        n_at_once = max(1, _LOGITS_AT_ONCE // model.shape.vocab_size)
        log_probs: list[float] = []
        tops: list[TopLogProbs] = []
        for part_ND, part_N in zip(torch.split(hidden_TD, n_at_once), torch.split(targets_T, n_at_once), strict=True):
            logits_NV = model.head(part_ND).float()
            log_probs += token_log_probs(logits_NV, part_N).tolist()
            if n_top:
                tops += [top_log_probs(logits_V, n_top, n_choices) for logits_V in logits_NV]
    return log_probs, tops


@torch.inference_mode()
def score_pairs(
    model: Transformer | CompiledTransformer, pairs: Sequence[tuple[list[int], list[int]]], max_batch_size: int
) -> list[LogLikelihood]:
    """Score each (context, continuation), neither empty, in batches of similar length."""
    scores: dict[int, LogLikelihood] = {}
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    while order:
        longest = len(pairs[order[0]][0]) + len(pairs[order[0]][1])
        n_rows = max(1, min(max_batch_size, POSITIONS_AT_ONCE // longest))
        batch, order = order[:n_rows], order[n_rows:]
        with torch_rests(model):
            scores.update(zip(batch, _score(model, [pairs[i] for i in batch]), strict=True))
    return [scores[i] for i in range(len(pairs))]


def _score(model: Transformer | CompiledTransformer, pairs: list[tuple[list[int], list[int]]]) -> list[LogLikelihood]:
    device = model.device
    inputs = [(context + continuation)[:-1] for context, continuation in pairs]
    longest = max(len(ids) for ids in inputs)
    tokens_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids in inputs], device=device)
    hidden_BTD = model.hidden(tokens_BT)
    row_N: list[int] = []
    position_N: list[int] = []
    target_N: list[int] = []
    for row, (context, continuation) in enumerate(pairs):
        row_N += [row] * len(continuation)
        position_N += range(len(context) - 1, len(context) - 1 + len(continuation))
        target_N += continuation
    hidden_ND = hidden_BTD[row_N, position_N]
    targets_N = torch.tensor(target_N, device=device)
    n_at_once = max(1, _LOGITS_AT_ONCE // model.shape.vocab_size)
    log_probs, greedy = [], []
    for part_ND, part_N in zip(torch.split(hidden_ND, n_at_once), torch.split(targets_N, n_at_once), strict=True):
        logits_NV = model.head(part_ND).float()
        log_probs.append(token_log_probs(logits_NV, part_N))
        greedy.append(logits_NV.argmax(dim=-1) == part_N)
    lengths = [len(continuation) for _, continuation in pairs]
    return [
        LogLikelihood(float(log_probs_T.double().sum()), len(log_probs_T), bool(greedy_T.all()))
        for log_probs_T, greedy_T in zip(
            torch.split(torch.cat(log_probs), lengths), torch.split(torch.cat(greedy), lengths), strict=True
        )
    ]
