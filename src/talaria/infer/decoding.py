"""One batch on its way from prompts to answers: run the model on every row, choose a token a row, let rows leave.

Legend: B rows still running, T prompt positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from talaria.infer.contract import Sampling
from talaria.infer.kv_cache import KVCache
from talaria.infer.sampling import choose_tokens, draw_uniforms
from talaria.infer.scheduler import Request
from talaria.model.transformer import Transformer


@dataclass(frozen=True)
class Step:
    """What one step gave: for each running row its place in the batch, its new token and that token's log-prob."""

    rows_B: Tensor
    tokens_B: Tensor
    log_probs_B: Tensor


class Decoding:
    """A batch of requests in progress: `step()` gives every running row a token, `keep()` lets finished rows leave."""

    @torch.inference_mode()
    def __init__(self, model: Transformer, requests: Sequence[Request], sampling: Sampling, n_choices: int) -> None:
        shape, weight = model.shape, next(model.parameters())
        self.model, self.sampling = model, sampling
        self.n_choices = n_choices
        self.cache = KVCache(
            shape.n_layers,
            len(requests),
            shape.n_kv_heads,
            max(request.capacity for request in requests),
            shape.d_head,
            weight.dtype,
            weight.device,
        )
        self.rows_B = torch.arange(len(requests), device=weight.device)
        self.uniforms_BT: Tensor | None = None
        if sampling.temperature > 0:
            longest = max(request.max_tokens for request in requests)
            draws = [draw_uniforms(request.seed, longest) for request in requests]
            self.uniforms_BT = torch.stack(draws).to(weight.device, torch.float32)
        self.n_steps = 0
        self.logits_BV = self._prefill([request.prompt_ids for request in requests])

    def _prefill(self, prompts: list[list[int]]) -> Tensor:
        """Run all prompts at once, padded on the right: causal attention never looks at the padding."""
        device = self.rows_B.device
        longest = max(len(ids) for ids in prompts)
        tokens_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids in prompts], device=device)
        lengths_B = torch.tensor([len(ids) for ids in prompts], device=device)
        positions_1T = torch.arange(longest, device=device)[None]
        self.cache.begin(lengths_B, longest)
        hidden_BTD = self.model.hidden(tokens_BT, positions_1T, cache=self.cache)
        self.cache.advance()
        return self.model.head(hidden_BTD[self.rows_B, lengths_B - 1])

    @torch.inference_mode()
    def step(self) -> Step:
        """Choose the next token of every running row."""
        uniforms_B = None if self.uniforms_BT is None else self.uniforms_BT[self.rows_B, self.n_steps]
        tokens_B, log_probs_B = choose_tokens(self.logits_BV, self.sampling, uniforms_B, self.n_choices)
        self.n_steps += 1
        return Step(self.rows_B, tokens_B, log_probs_B)

    @torch.inference_mode()
    def proceed(self, tokens_B: Tensor, alive_B: Tensor) -> None:
        """Drop the rows that are not alive and run the model on the others' new tokens."""
        if not bool(alive_B.all()):
            order = self.cache.keep(alive_B)
            self.rows_B, tokens_B = self.rows_B[order], tokens_B[order]
        cache = self.cache
        cache.begin(torch.ones_like(tokens_B), cache.longest + 1)
        hidden_B1D = self.model.hidden(tokens_B[:, None], cache.lengths_B[:, None], cache.mask(), cache)
        cache.advance()
        self.logits_BV = self.model.head(hidden_B1D[:, 0])
