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
import torch.nn.functional as F
from torch import Tensor

from talaria.model.device import default_device
from talaria.model.scalar import ScalarModel
from talaria.model.transformer import Transformer
from talaria.tokens.chat import encode_chat
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.branches import Branches
from talaria.train.cores import Cut, forward_each
from talaria.train.log_probs import chosen_log_probs

T = TypeVar("T", bound=tuple[Any, ...])


class Answers(NamedTuple):
    """int64 (B, T), int64 (B, T), bool (B, T): true where the target is the answer's, its end token included."""

    inputs_BT: Tensor
    targets_BT: Tensor
    mask_BT: Tensor

    def hidden(self, model: Transformer) -> Tensor:
        """States (B, T, D)."""
        return model.hidden(self.inputs_BT)


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


def answer_log_probs(model: Transformer, answers: Answers | Branches) -> tuple[Tensor, Tensor]:
    """log-probabilities (B, T) of the answer's tokens and the entropy (B, T) of the choice there, in nats, 0 elsewhere.
    The head is read at answer tokens only."""
    hidden_BTD = answers.hidden(model)
    chosen_N, entropy_N = _read_head(model, hidden_BTD, answers)
    return _in_place(chosen_N, answers.mask_BT), _in_place(entropy_N, answers.mask_BT)


def _read_head(model: Transformer, hidden_BTD: Tensor, answers: Answers | Branches) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N,) of the answers' tokens and entropies (N,)."""
    return chosen_log_probs(model.head(hidden_BTD[answers.mask_BT]), answers.targets_BT[answers.mask_BT])


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
    return read_scored(model, what_is_scored(model, answers))


def what_is_scored(model: ScalarModel, answers: Answers) -> Tensor:
    """End states (B, D) of whole answers, with their likelihood behind (B, D + 5) where the model reads it."""
    if model.likelihood_F is None:
        return end_states(model.trunk, answers)
    hidden_BTD = _all_states(model.trunk, answers)
    chosen_N, _ = _read_head(model.trunk, hidden_BTD[:, :-1], answers)
    likelihood_BF = likelihood(_in_place(chosen_N, answers.mask_BT), answers.mask_BT)
    return torch.cat([_at_ends(hidden_BTD, answers).to(likelihood_BF), likelihood_BF], dim=1)


def read_scored(model: ScalarModel, scored: Tensor) -> Tensor:
    """Rewards (B,) from `what_is_scored`; values (B, T) from the like of it at every state (B, T, D + 5)."""
    width = len(model.weight_D)
    values_B = model.read(scored[..., :width])
    if model.likelihood_F is not None:
        with torch.autocast(scored.device.type, enabled=False):
            values_B = values_B + (scored[..., width:].to(model.likelihood_F) @ model.likelihood_F).to(values_B)
    return values_B


def likelihood(log_probs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Features (B, 5) of answers from the log-probabilities of their tokens: the mean, the lowest, the number of tokens
    in tens, the probability of the least likely token and that of the whole answer.

    The state at the end is made to tell what follows an answer, not whether the answer agrees with what the model
    knows; the probability of its least likely token does tell.
    """
    counts_B, total_B = mask_BT.sum(dim=1).to(log_probs_BT), log_probs_BT.sum(dim=1)
    lowest_B = torch.where(mask_BT, log_probs_BT, 0.0).amin(dim=1)
    return torch.stack([total_B / counts_B, lowest_B, counts_B / 10, lowest_B.exp(), total_B.exp()], dim=1)


def likelihood_so_far(log_probs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`likelihood` (B, T, 5) of what stands of an answer before each of its tokens, 0 outside the answer. Before the
    first token nothing does, which is as likely as can be."""
    inside_BT = torch.where(mask_BT, log_probs_BT, 0.0)
    # One place later than the token they are about: a state has not read the token that is chosen there.
    total_BT = F.pad(inside_BT.cumsum(dim=1), (1, -1))
    lowest_BT = F.pad(inside_BT.cummin(dim=1).values, (1, -1))
    counts_BT = F.pad(mask_BT.cumsum(dim=1), (1, -1)).to(log_probs_BT)
    mean_BT = total_BT / counts_BT.clamp_min(1)
    features = torch.stack([mean_BT, lowest_BT, counts_BT / 10, lowest_BT.exp(), total_BT.exp()], dim=-1)
    return torch.where(mask_BT[:, :, None], features, 0.0)


def last_places(mask_BT: Tensor) -> Tensor:
    """int64 (B,): the place of each row's last answer token."""
    places_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return torch.where(mask_BT, places_T, -1).amax(dim=1)


def shortest_first(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[int]:
    """An order of rows in which `in_pieces` cuts off most of the padding."""
    return sorted(range(len(prompts)), key=lambda row: len(prompts[row]) + len(answers[row]))


def in_pieces(tensors: T, rows: int) -> Iterator[T]:
    """A named tuple of tensors (B, ...) with a `mask_BT` among them, cut into views of at most `rows` rows, each as
    wide as its longest row."""
    for pieces in zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True):
        piece: Any = type(tensors)(*pieces)
        end = int(last_places(piece.mask_BT).amax()) + 1
        yield type(tensors)(*(tensor[:, :end] if tensor.dim() > 1 else tensor for tensor in pieces))


def over_pieces(compute: Callable[[T], Tensor], answers: T, cut: Cut) -> Tensor:
    """`compute` of all rows, without gradients: (B, ...), or (B, T, ...) with 0 where a piece was less wide."""
    places = answers[0].shape[1]
    pieces = forward_each(compute, list(in_pieces(answers, cut.rows)), cut.cores)
    if pieces[0].dim() == 1:
        return torch.cat(pieces)
    return torch.cat([F.pad(piece, (0, 0) * (piece.dim() - 2) + (0, places - piece.shape[1])) for piece in pieces])


@torch.no_grad()
def over_ids(
    compute: Callable[[Answers], Tensor], ids: Sequence[tuple[Sequence[int], Sequence[int]]], micro_tokens: int
) -> Tensor:
    """`compute`, which gives (B, ...), of prompts with their answers, without gradients and in their order. At most
    `micro_tokens` tokens are read at a time, padding counted, or one row; rows of similar length together."""
    order = sorted(range(len(ids)), key=lambda place: len(ids[place][0]) + len(ids[place][1]))
    pieces: list[list[int]] = []
    for place in order:  # the newest of a piece is its longest
        if not pieces or (len(pieces[-1]) + 1) * (len(ids[place][0]) + len(ids[place][1])) > micro_tokens:
            pieces.append([])
        pieces[-1].append(place)
    read = []
    for piece in pieces:
        prompts, answers = zip(*(ids[place] for place in piece), strict=True)
        read.append(compute(pad_answers(prompts, answers, default_device())))
    return torch.cat(read)[torch.tensor(order).argsort().to(read[0].device)]
