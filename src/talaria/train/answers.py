"""Prompts with their answers as padded rows, and what a model thinks of the answers. All that learns from answers reads
them here: the reward model, PPO, DPO, GRPO.

Everything stands at the place of the token that is predicted: at place t of a row `inputs` holds the token before,
`targets` the token, log-probabilities are the token's, values those of the state before it.

Shapes: B rows, T places, N answer tokens, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from talaria.model.scalar import ScalarModel
from talaria.model.transformer import Transformer
from talaria.tokens.chat import encode_chat
from talaria.tokens.tokenizer import Tokenizer

T = TypeVar("T", bound=tuple[Any, ...])


class Answers(NamedTuple):
    """int64 (B, T), int64 (B, T), bool (B, T): true where the target is the answer's, its end token included."""

    inputs_BT: Tensor
    targets_BT: Tensor
    mask_BT: Tensor


def encode_answer(tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], answer: str) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of an answer that has ended, up to its end token; what the template writes after it is left
    out, for a sampled answer has no such thing."""
    chat = encode_chat(tokenizer, [*messages, {"role": "assistant", "content": answer}])
    n_prompt = len(encode_chat(tokenizer, messages, add_generation_prompt=True).ids)
    end = max(place for place, counts in enumerate(chat.loss_mask) if counts) + 1
    return chat.ids[:n_prompt], chat.ids[n_prompt:end]


def pad_answers(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: torch.device | None = None
) -> Answers:
    """Rows filled up on the right. Places are told by lengths, never by the id of a token: padding may be any."""
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor([*prompt, *answer])
        mask[row, len(prompt) : end] = True
    return Answers(tokens[:, :-1].to(device), tokens[:, 1:].to(device), mask[:, 1:].to(device))


def answer_log_probs(model: Transformer, answers: Answers) -> tuple[Tensor, Tensor]:
    """log-probabilities (B, T) of the answer's tokens and the entropy (B, T) of the choice there, in nats, 0 elsewhere.
    The head is read at answer tokens only."""
    all_NV, chosen_N = _read_head(model, model.hidden(answers.inputs_BT), answers)
    with torch.no_grad():
        entropy_N = -(all_NV.exp() * all_NV).sum(dim=-1)
    return _in_place(chosen_N, answers.mask_BT), _in_place(entropy_N, answers.mask_BT)


def _read_head(model: Transformer, hidden_BTD: Tensor, answers: Answers) -> tuple[Tensor, Tensor]:
    """log-probabilities (N, V) at answer tokens, and of the tokens that stand there (N,)."""
    all_NV = torch.log_softmax(model.head(hidden_BTD[answers.mask_BT]), dim=-1)
    return all_NV, all_NV.gather(1, answers.targets_BT[answers.mask_BT][:, None]).squeeze(1)


def _in_place(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    return values_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, values_N)


def end_states(trunk: Transformer, answers: Answers) -> Tensor:
    """Hidden states (B, D) at the token that ends each answer, which has read all of it."""
    return _at_ends(_all_states(trunk, answers), answers)


def _all_states(trunk: Transformer, answers: Answers) -> Tensor:
    """Hidden states (B, T + 1, D) at every token, the last one of a row included."""
    return trunk.hidden(torch.cat([answers.inputs_BT[:, :1], answers.targets_BT], dim=1))


def _at_ends(hidden_BTD: Tensor, answers: Answers) -> Tensor:
    rows_B = torch.arange(len(hidden_BTD), device=hidden_BTD.device)
    return hidden_BTD[rows_B, last_places(answers.mask_BT) + 1]


def score(model: ScalarModel, answers: Answers) -> Tensor:
    """The reward (B,) of whole answers: the head at the token that ends each, and what the model makes of the answer's
    likelihood where it reads that."""
    if model.likelihood_F is None:
        return model.read(end_states(model.trunk, answers))
    ends_BD, likelihood_BF = what_is_scored(model.trunk, answers)
    return model.read(ends_BD) + (likelihood_BF @ model.likelihood_F).to(ends_BD)


def what_is_scored(trunk: Transformer, answers: Answers) -> tuple[Tensor, Tensor]:
    """End states (B, D) and likelihoods (B, 5) of whole answers."""
    hidden_BTD = _all_states(trunk, answers)
    _, chosen_N = _read_head(trunk, hidden_BTD[:, :-1], answers)
    return _at_ends(hidden_BTD, answers), likelihood(_in_place(chosen_N, answers.mask_BT), answers.mask_BT)


def likelihood(log_probs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Features (B, 5) of answers from the log-probabilities of their tokens: the mean, the lowest, the number of tokens
    in tens, the probability of the least likely token and that of the whole answer.

    The state at the end is made to tell what follows an answer, not whether the answer agrees with what the model
    knows; the probability of its least likely token does tell.
    """
    counts_B, total_B = mask_BT.sum(dim=1).to(log_probs_BT), log_probs_BT.sum(dim=1)
    lowest_B = torch.where(mask_BT, log_probs_BT, 0.0).amin(dim=1)
    return torch.stack([total_B / counts_B, lowest_B, counts_B / 10, lowest_B.exp(), total_B.exp()], dim=1)


def last_places(mask_BT: Tensor) -> Tensor:
    """int64 (B,): the place of each row's last answer token."""
    places_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return torch.where(mask_BT, places_T, -1).amax(dim=1)


def in_pieces(tensors: T, rows: int) -> Iterator[T]:
    """A named tuple of tensors, cut into pieces of at most `rows` rows."""
    for pieces in zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True):
        yield type(tensors)(*pieces)


def in_pieces_by_length(tensors: T, mask_BT: Tensor, rows: int) -> Iterator[T]:
    """The same with rows of like length together, each piece cut to its own longest row: half of a mixed batch of
    short answers is padding, which costs as much as words do."""
    ends_B = last_places(mask_BT) + 1
    order_B = ends_B.argsort(stable=True)
    sorted_tensors = type(tensors)(*(tensor[order_B] for tensor in tensors))
    for piece, ends in zip(in_pieces(sorted_tensors, rows), torch.split(ends_B[order_B], rows), strict=True):
        yield type(tensors)(*(tensor[:, : int(ends[-1])] for tensor in piece))


@torch.no_grad()
def over_pieces(compute: Callable[[Answers], Tensor], answers: Answers, rows: int) -> Tensor:
    """`compute` of all rows, without gradients, `rows` at a time."""
    return torch.cat([compute(piece) for piece in in_pieces(answers, rows)])
