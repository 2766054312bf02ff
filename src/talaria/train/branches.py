"""Several answers behind one reading of their prompt: a row is a prompt once, and its answers as branches of it.

    prompt of all        | last of the prompt, answer 1 | last of the prompt, answer 2 | padding
    branch 0 0 0 0 0 0 0 | 1 1 1 1 1 1 1 1 1 1 1 1 1 1  | 2 2 2 2 2 2 2 2 2            | 0 0

A token sees what of its row's branch 0 and of its own branch stands before it, at the positions it would have in a row
of its own, so that every number is what it would be there. The prompt's last token stands once in each branch, for
another one follows it in each: as in `answers.Answers`, everything stands at the place of the token that is predicted.

Shapes: B rows, T places, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer

Ids = Sequence[int]


class Branches(NamedTuple):
    """int64 (B, T), int64 (B, T), bool (B, T) as `answers.Answers`, and each place's position and branch, int64."""

    inputs_BT: Tensor
    targets_BT: Tensor
    mask_BT: Tensor
    positions_BT: Tensor
    branch_BT: Tensor

    def hidden(self, model: Transformer) -> Tensor:
        """States (B, T, D)."""
        return model.hidden(self.inputs_BT, self.positions_BT, sees(self.branch_BT))


def branch_rows(rows: Sequence[tuple[Ids, Sequence[Ids]]], device: torch.device | None = None) -> Branches:
    """A row for each prompt with its answers, filled up on the right."""
    width = max(row_length(prompt, answers) for prompt, answers in rows)
    tensors = Branches(*(torch.zeros(len(rows), width, dtype=torch.int64) for _ in range(5)))
    for row, (prompt, answers) in enumerate(rows):
        at = len(prompt) - 1
        tensors.inputs_BT[row, :at] = torch.tensor(prompt[:-1])
        tensors.positions_BT[row, :at] = torch.arange(at)
        for number, answer in enumerate(answers, start=1):
            end = at + len(answer)
            tensors.inputs_BT[row, at:end] = torch.tensor([prompt[-1], *answer[:-1]])
            tensors.targets_BT[row, at:end] = torch.tensor(answer)
            tensors.mask_BT[row, at:end] = 1
            tensors.positions_BT[row, at:end] = torch.arange(len(prompt) - 1, len(prompt) - 1 + len(answer))
            tensors.branch_BT[row, at:end] = number
            at = end
    return Branches(*(tensor.to(device) for tensor in tensors._replace(mask_BT=tensors.mask_BT.bool())))


def row_length(prompt: Ids, answers: Sequence[Ids]) -> int:
    """Places of a row."""
    return len(prompt) - 1 + sum(map(len, answers))


def sees(branch_BT: Tensor) -> Tensor:
    """Bool (B, 1, T, T): which places a place sees. Padding sees the beginning of its row, and nothing sees it."""
    places_T = torch.arange(branch_BT.shape[1], device=branch_BT.device)
    own_BTT = branch_BT[:, :, None] == branch_BT[:, None, :]
    return ((places_T <= places_T[:, None]) & (own_BTT | (branch_BT == 0)[:, None, :]))[:, None]


def answers_a_row(shape: ModelShape, n_prompt: int, n_answer: int, most: int) -> int:
    """How many answers of `n_answer` tokens one row had best hold behind their prompt, at most `most`: each further one
    saves its prompt's tokens, but all pairs of places are multiplied where a row of its own leaves out half. One where
    the model looks back at the tokens before by their place in the row."""
    if shape.token_shift or shape.ngram_embeddings:
        return 1
    whole = shape.forward_flops_per_token(0)
    per_token = whole - 2 * shape.vocab_size * shape.d_model  # the head is read once an answer token with any row
    per_pair = shape.forward_flops_per_token(1) - whole

    def flops(n: int) -> float:
        """An answer's share of a row of `n`."""
        places = n_prompt + n * n_answer
        return places * (per_token + per_pair * places * (0.5 if n == 1 else 1.0)) / n

    return min((n for n in range(1, most + 1) if n == 1 or n_prompt + n * n_answer <= shape.context), key=flops)
