"""From logits to the next token of every row: raw logits in, chosen tokens and their log-probabilities out.

Legend: B rows in the batch, V vocabulary, N candidates kept by the filters. Example:

    tokens_B, log_probs_B = choose_tokens(logits_BV, Sampling(temperature=0.7, top_p=0.9), uniforms_B)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from talaria.errors import UsageError, UserError
from talaria.infer.contract import Sampling, TopLogProbs
from talaria.model.compiled import Scores

_NUCLEUS_CANDIDATES = 256
_STRETCH = 64


def draw_uniforms(seed: int | None, n_tokens: int) -> Tensor:
    """The n_tokens numbers in [0, 1) that decide one request's text (float64); None draws a fresh seed.

    They belong to the request, not to the batch: so the same seed gives the same text in any company.
    """
    if seed is not None and seed < 0:
        raise UsageError(f"seed={seed}: must be 0 or more")
    return torch.from_numpy(np.random.default_rng(seed).random(n_tokens))


class Penalties:
    """What one request's own tokens and biases do to its logits: the prompt's ids in, then each new token.

    Raises UserError where a bias of -inf bars each of the n_vocab tokens.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], n_vocab: int, device: torch.device) -> None:
        self.sampling = sampling
        self._counts_V = torch.zeros(n_vocab, device=device)
        self._seen_V = torch.zeros(n_vocab, dtype=torch.bool, device=device)
        # A prompt may hold ids of rows that pad the model's vocabulary; none of them is ever chosen.
        self._seen_V[torch.tensor([token for token in prompt_ids if token < n_vocab], device=device)] = True
        self._bias_V = torch.zeros(n_vocab, device=device)
        for token, bias in sampling.logit_bias.items():
            self._bias_V[token] = bias
        if bool((self._bias_V == -torch.inf).all()):
            raise UserError("logit_bias bars every token; leave at least one")

    def count(self, token: int) -> None:
        """Take note of a token of the answer."""
        self._counts_V[token] += 1
        self._seen_V[token] = True

    def apply(self, logits_V: Tensor) -> Tensor:
        """Logits as they are sampled from (`Sampling` says how)."""
        factor = self.sampling.repetition_penalty
        repeated_V = torch.where(logits_V > 0, logits_V / factor, logits_V * factor)
        logits_V = torch.where(self._seen_V, repeated_V, logits_V)
        logits_V = logits_V - self.sampling.presence_penalty * (self._counts_V > 0)
        return logits_V - self.sampling.frequency_penalty * self._counts_V + self._bias_V


def choose_tokens(
    logits_BV: Tensor,
    sampling: Sampling | Sequence[Sampling],
    uniforms_B: Tensor | None,
    n_choices: int | None = None,
    penalties: Sequence[Penalties | None] = (),
    allowed: Sequence[Tensor | None] = (),
    scores: Scores | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose one token a row.

    Takes float logits_BV, one way of sampling for all rows or one a row, and one uniform number a row (None when all
    are greedy). n_choices below V bars the ids from there on: rows that pad the vocabulary and mean nothing. `allowed`
    holds one bool (n_choices,) a row, with at least one id, or None for all; it acts after the penalties. Returns
    tokens_B (int64) and log_probs_B (float32, float64 of float64): the log-softmax of the raw logits at the chosen
    tokens, before penalties, temperature, filters and `allowed`. `scores` are those of logits_BV, where the model
    computed them already. Raises UserError for logits that are NaN or +inf.
    """
    logits_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
    log_total_B = logits_BV.logsumexp(dim=-1) if scores is None else scores.log_totals
    if not bool(log_total_B.isfinite().all()):
        raise UserError("the model's logits are not finite; its training diverged or its file is damaged: use another")
    choices_BV = logits_BV[:, :n_choices]
    if any(penalties):
        rows = [row if own is None else own.apply(row) for row, own in zip(choices_BV, penalties, strict=True)]
        choices_BV = torch.stack(rows)
    if any(ids_V is not None for ids_V in allowed):
        choices_BV = choices_BV.clone()
        for row, ids_V in zip(choices_BV, allowed, strict=True):
            if ids_V is not None:
                row.masked_fill_(~ids_V, -torch.inf)
    groups = _alike(sampling)
    is_plain = not any(penalties) and all(ids_V is None for ids_V in allowed)
    is_greedy = is_plain and all(way.temperature == 0 for way, _ in groups)
    best_B = scores.best() if scores is not None and is_greedy else None
    if best_B is not None and bool((best_B < choices_BV.shape[1]).all()):
        tokens_B = best_B
    elif len(groups) == 1:
        tokens_B = _choose(choices_BV, groups[0][0], uniforms_B)
    else:
        tokens_B = torch.empty(len(logits_BV), dtype=torch.int64, device=logits_BV.device)
        for way, rows_G in groups:
            own_G = None if uniforms_B is None else uniforms_B[rows_G]
            tokens_B[rows_G] = _choose(choices_BV[rows_G], way, own_G)
    return tokens_B, logits_BV.gather(-1, tokens_B[:, None])[:, 0] - log_total_B


def top_log_probs(logits_V: Tensor, n: int, n_choices: int) -> TopLogProbs:
    """The n likeliest of the first n_choices ids of one row of raw logits, best first, each with its log-softmax."""
    values_N, ids_N = logits_V[:n_choices].float().topk(min(n, n_choices))
    return list(zip(ids_N.tolist(), (values_N - logits_V.float().logsumexp(dim=-1)).tolist(), strict=True))


def token_log_probs(logits_BV: Tensor, tokens_B: Tensor) -> Tensor:
    """log_softmax(logits)[token] a row, float32, without building the whole log-softmax."""
    chosen_B = logits_BV.gather(-1, tokens_B[..., None])[..., 0].float()
    return chosen_B - logits_BV.float().logsumexp(dim=-1)


def _alike(sampling: Sampling | Sequence[Sampling]) -> list[tuple[Sampling, list[int]]]:
    """Rows that choose in the same way, together; a single group needs no row numbers."""
    if isinstance(sampling, Sampling):
        return [(sampling, [])]
    if all(way is sampling[0] for way in sampling):
        return [(sampling[0], [])]
    groups: dict[tuple[float, float, int | None, float], tuple[Sampling, list[int]]] = {}
    for row, way in enumerate(sampling):
        groups.setdefault((way.temperature, way.top_p, way.top_k, way.min_p), (way, []))[1].append(row)
    return list(groups.values())


def _choose(logits_BV: Tensor, sampling: Sampling, uniforms_B: Tensor | None) -> Tensor:
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    assert uniforms_B is not None
    return _sample(logits_BV, sampling, uniforms_B)


def _sample(logits_BV: Tensor, sampling: Sampling, uniforms_B: Tensor) -> Tensor:
    vocab_size = logits_BV.shape[-1]
    top_k = min(sampling.top_k or vocab_size, vocab_size)
    if sampling.temperature == sampling.top_p == 1.0 and sampling.min_p == 0 and top_k == vocab_size:
        return _invert_cdf(logits_BV.softmax(dim=-1), uniforms_B)
    # The best logit is moved to 0 first, so that a tiny temperature overflows nowhere.
    scaled_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / max(sampling.temperature, 1e-10)
    if sampling.min_p > 0:
        scaled_BV = scaled_BV.masked_fill(scaled_BV < math.log(sampling.min_p), -torch.inf)
    if top_k == vocab_size and sampling.top_p == 1.0:
        return _invert_cdf(scaled_BV.softmax(dim=-1), uniforms_B)
    if top_k < vocab_size:
        values_BN, ids_BN = scaled_BV.topk(top_k, dim=-1)  # sorted, most likely first
        return _pick_nucleus(values_BN.softmax(dim=-1), ids_BN, sampling.top_p, uniforms_B)
    # Top-p alone: sorting the whole vocabulary costs more than the model, and few tokens usually hold the mass. Each
    # row decides by itself whether they do, so that its text does not depend on its neighbours.
    total_B1 = scaled_BV.logsumexp(dim=-1, keepdim=True)
    values_BN, ids_BN = scaled_BV.topk(min(_NUCLEUS_CANDIDATES, vocab_size), dim=-1)
    probs_BN = (values_BN - total_B1).exp()
    tokens_B = _pick_nucleus(probs_BN, ids_BN, sampling.top_p, uniforms_B)
    wide_B = probs_BN.sum(dim=-1) < sampling.top_p
    if bool(wide_B.any()):
        values_BV, ids_BV = scaled_BV[wide_B].sort(dim=-1, descending=True)
        tokens_B[wide_B] = _pick_nucleus(values_BV.softmax(dim=-1), ids_BV, sampling.top_p, uniforms_B[wide_B])
    return tokens_B


def _pick_nucleus(probs_BN: Tensor, ids_BN: Tensor, top_p: float, uniforms_B: Tensor) -> Tensor:
    """Draw among the first candidates, most likely first, whose probabilities reach top_p."""
    before_BN = probs_BN.cumsum(dim=-1) - probs_BN  # mass of the tokens that rank higher
    outside_BN = before_BN >= top_p
    outside_BN[:, 0] = False
    index_B = _invert_cdf(probs_BN.masked_fill(outside_BN, 0.0), uniforms_B)
    return ids_BN.gather(-1, index_B[:, None])[:, 0]


def _invert_cdf(weights_BN: Tensor, uniforms_B: Tensor) -> Tensor:
    """Index of the first candidate whose cumulative weight exceeds uniform * total (inverse transform sampling): first
    among stretches of `_STRETCH` candidates, then within one, for a running sum of all takes as long as their
    exponentials."""
    n_missing = -weights_BN.shape[1] % _STRETCH
    if n_missing:
        weights_BN = F.pad(weights_BN, (0, n_missing))
    weights_BSn = weights_BN.reshape(len(weights_BN), -1, _STRETCH)
    ends_BS = weights_BSn.sum(dim=-1).cumsum(dim=-1)
    targets_B1 = uniforms_B[:, None].to(ends_BS) * ends_BS[:, -1:]
    stretch_B1 = _first_beyond(ends_BS, targets_B1)
    before_B1 = F.pad(ends_BS, (1, 0)).gather(1, stretch_B1)
    own_Bn = weights_BSn.gather(1, stretch_B1[..., None].expand(-1, 1, _STRETCH)).squeeze(1)
    # Taken off the target: added to the sums, it would swallow small weights, and a token of none could be drawn.
    index_B1 = _first_beyond(own_Bn.cumsum(dim=-1), targets_B1 - before_B1)
    return (stretch_B1 * _STRETCH + index_B1).squeeze(1)


def _first_beyond(cumulative_BN: Tensor, targets_B1: Tensor) -> Tensor:
    """Place (B, 1) of the first sum above the target; where rounding left none, of the last that still adds."""
    place_B1 = torch.searchsorted(cumulative_BN, targets_B1, right=True)
    last_B1 = torch.searchsorted(cumulative_BN, cumulative_BN[:, -1:].contiguous())
    return torch.minimum(place_B1, last_B1)
