"""The reward model: comparisons in, a model that scores an answer out, and how far it can be trusted.

It begins as the fine-tuned model with a scalar head, read at the token that ends the answer. All pairs of one prompt's
answers are one batch element (Ouyang et al. 2022, section 3.5), so that an answer is never trained on as often as it
was compared. Writes reward_model/, checkpoints/, metrics.jsonl, training.json and reward.json (`reward_quality.py`).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from talaria.errors import UserError
from talaria.feedback.store import Comparison, FeedbackStore
from talaria.files import atomic_folder, atomic_write, to_json
from talaria.model.checkpoint import load_model
from talaria.model.device import default_device
from talaria.model.lora import add_lora, merge_lora
from talaria.model.scalar import ScalarModel, save_scalar_model
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.answers import Answers, encode_answer, over_ids, pad_answers, read_scored, score, what_is_scored
from talaria.train.policy_losses import ranking_loss
from talaria.train.settings import RewardSettings
from talaria.train.tuning import Tuning

_PIECE_PROMPTS = 8  # that go through a network together on a CPU


@dataclass
class Compared:
    """One prompt under one criterion: its different answers, and every choice between two of them as (i, j, share of
    preference of i)."""

    messages: list[dict[str, Any]]
    objective: str = "helpful"
    texts: list[str] = field(default_factory=list)
    pairs: list[tuple[int, int, float]] = field(default_factory=list)
    ids: list[tuple[list[int], list[int]]] = field(default_factory=list)
    """Prompt's and answer's, for each text."""
    split: str | None = None

    @property
    def opening(self) -> str:
        """How the conversation begins, up to its first user turn."""
        first = next((n for n, message in enumerate(self.messages) if message.get("role") == "user"), 0)
        return json.dumps(self.messages[: first + 1], sort_keys=True)


def train_reward(
    settings: RewardSettings, base: Path, databases: Sequence[str | Path], seed: int, folder: Path
) -> None:
    """Train on the comparisons in `databases`, beginning as the model at `base`; write the stage's files."""
    from talaria.train.reward_quality import measure_quality

    trunk, tokenizer = load_model(base)
    model = ScalarModel(trunk, torch.Generator().manual_seed(seed), settings.reads_likelihood)
    if settings.lora is not None:
        add_lora(trunk, settings.lora.rank, settings.lora.alpha, torch.Generator().manual_seed(seed))
    context = min(settings.context or trunk.shape.context, trunk.shape.context)
    training, held_out, dropped = read_compared(databases, tokenizer, context, settings.validation_share, seed)
    per_epoch = -(-len(training) // settings.batch_prompts)
    tuning = Tuning(
        "reward",
        folder,
        {"reward": model},
        trunk,
        tokenizer,
        settings.optimizer,
        settings.epochs * per_epoch,
        learning_rates={"reward": settings.optimizer.learning_rate or 3e-4},
        checkpoint_every_seconds=settings.checkpoint_every_seconds,
        seed=seed,
        dtype=settings.dtype,
    )
    same_data(tuning, training)
    known_NX = None
    if settings.reads_likelihood and tuning.step == 0:
        with tuning.products():
            known_NX = all_that_is_scored(model, training, settings.micro_batch_tokens)
        fit_head(model, training, known_NX)

    def loss_of(prompts: list[Compared]) -> Tensor:
        scores_N, start, total = score(model, as_answers(prompts)), 0, []
        for prompt in prompts:
            scores_K = scores_N[start : (start := start + len(prompt.texts))]
            total.append(ranking_loss(scores_K, *pairs_of(prompt, scores_K.device)))
        return torch.stack(total).sum()

    with tuning.progress:
        while not tuning.finished:
            chosen = batch_of(training, settings.batch_prompts, tuning.step, seed)
            micro = as_micro_batches(chosen, settings.micro_batch_tokens, tuning.cores(len(chosen)))
            loss = tuning.backward(loss_of, micro, len(chosen), "reward") / len(chosen)
            norm = tuning.update(loss)
            tuning.end_step(f"loss {loss:.3f}", train_loss=loss, grad_norm=norm, prompts=len(chosen))

    merge_lora(trunk)
    with tuning.products(), torch.no_grad():
        if known_NX is None or settings.epochs:  # the trunk has changed since
            known_NX = all_that_is_scored(model, training, settings.micro_batch_tokens)
        mean = float(read_scored(model, known_NX).mean())
        model.bias.sub_(mean)
        quality = measure_quality(model, known_NX, held_out, settings.micro_batch_tokens)
    with atomic_folder(folder / "reward_model") as target:
        save_scalar_model(model, tokenizer, target)
    atomic_write(folder / "reward.json", to_json(quality))
    tuning.close(
        prompts=len(training),
        prompts_held_out=len(held_out),
        prompts_dropped=dropped,
        pairs=sum(len(prompt.pairs) for prompt in training),
        mean_before_shift=mean,
        accuracy=quality["together"]["accuracy"],
    )


def fit_head(model: ScalarModel, training: Sequence[Compared], known_NF: Tensor, ridge: float = 1e-2) -> None:
    """Set head and weights of the likelihood to those that tell most of the trunk as it is: the ranking loss of all
    pairs with a penalty of `ridge` on their squares. `known_NF` is `all_that_is_scored` of all answers. Fine-tuning
    from a head that knows nothing would first bend the trunk towards it (Kumar et al. 2022, "Fine-Tuning can Distort
    Pretrained Features")."""
    assert model.likelihood_F is not None
    features_NF = known_NF.double()
    starts = list(accumulate((len(prompt.texts) for prompt in training), initial=0))[:-1]
    pairs = [
        (start + i, start + j, share)
        for start, prompt in zip(starts, training, strict=True)
        for i, j, share in prompt.pairs
    ]
    first_P, second_P = torch.tensor([(i, j) for i, j, _ in pairs], device=features_NF.device).unbind(dim=1)
    share_P = torch.tensor([share for _, _, share in pairs], dtype=torch.float64, device=features_NF.device)
    # What hardly differs among all answers tells nothing: no large weights for it.
    scale_F = features_NF.std(dim=0).clamp_min(1e-2)
    difference_PF = (features_NF[first_P] - features_NF[second_P]) / scale_F
    weight_F = difference_PF.new_zeros(difference_PF.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight_F], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        total = F.binary_cross_entropy_with_logits(difference_PF @ weight_F, share_P)
        total = total + ridge * weight_F.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    solver.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        found_F, width = weight_F / scale_F, len(model.weight_D)
        model.weight_D.copy_(found_F[:width])
        model.likelihood_F.copy_(found_F[width:])


def all_that_is_scored(model: ScalarModel, prompts: Sequence[Compared], micro_tokens: int) -> Tensor:
    """`what_is_scored` (N, D or more) of all answers of all prompts, in order, without gradients."""
    ids = [pair for prompt in prompts for pair in prompt.ids]
    return over_ids(lambda answers: what_is_scored(model, answers), ids, micro_tokens)


def read_compared(
    databases: Sequence[str | Path], tokenizer: Tokenizer, context: int, validation_share: float, seed: int
) -> tuple[list[Compared], list[Compared], int]:
    """Training and held-out prompts, and of how many nothing can be used: no pair of answers fits the context, or the
    template cannot write the conversation.

    Conversations that begin alike are on one side, whoever compared answers in them: that of the prompts' own split
    where there is one ("test" is never read), else by a number drawn from how they begin, so that later comparisons
    move few.
    """
    prompts: dict[str, Compared] = {}
    for database in databases:
        store = FeedbackStore(database)
        for comparison in store.read_comparisons():
            key = json.dumps([comparison.messages, comparison.criterion], sort_keys=True)
            prompt = prompts.setdefault(key, Compared(comparison.messages, comparison.criterion or "helpful"))
            prompt.split = comparison.split or prompt.split
            _add(prompt, comparison)
        store.close()
    kept = [prompt for prompt in prompts.values() if _encode(prompt, tokenizer, context)]
    splits = {prompt.opening: prompt.split for prompt in kept if prompt.split is not None}
    free = sorted({prompt.opening for prompt in kept} - set(splits), key=lambda opening: _draw(opening, seed))
    n_held_out = max(0 if splits else 1, round(len(free) * validation_share))
    splits |= {opening: "validation" if place < n_held_out else "train" for place, opening in enumerate(free)}
    training = [prompt for prompt in kept if splits[prompt.opening] == "train"]
    held_out = [prompt for prompt in kept if splits[prompt.opening] == "validation"]
    if not training or not held_out:
        raise UserError(
            f"{len(kept)} prompts with comparisons that can be read, {len(training)} to train and {len(held_out)} to "
            "validate on: too few; collect more, or give them other splits"
        )
    return training, held_out, len(prompts) - len(kept)


def batch_of(training: list[Compared], size: int, step: int, seed: int) -> list[Compared]:
    """The prompts of a step: each once an epoch, in a new order every time."""
    epoch, batch = divmod(step, -(-len(training) // size))
    order = random.Random(f"{seed}/{epoch}").sample(range(len(training)), len(training))
    return [training[i] for i in order[batch * size : (batch + 1) * size]]


def same_data(tuning: Tuning, training: Sequence[Compared]) -> None:
    """Refuse to go on with a try that began with other comparisons: its held-out prompts may have been trained on."""
    digest = hashlib.sha256(json.dumps([[prompt.ids, prompt.pairs] for prompt in training]).encode()).hexdigest()
    if tuning.memory.setdefault("training_sha256", digest) != digest:
        raise UserError("the comparisons changed since this stage began; run it again with --force")


def _draw(opening: str, seed: int) -> float:
    return random.Random(f"{seed}/{opening}").random()


def _encode(prompt: Compared, tokenizer: Tokenizer, context: int) -> bool:
    """Give a prompt its ids; answers that do not fit leave, with their pairs. Whether a pair is left."""
    try:
        ids = [encode_answer(tokenizer, prompt.messages, text) for text in prompt.texts]
    except UserError:
        return False
    fits = [place for place, (asked, answer) in enumerate(ids) if len(asked) + len(answer) <= context]
    new = {old: place for place, old in enumerate(fits)}
    prompt.texts, prompt.ids = [prompt.texts[place] for place in fits], [ids[place] for place in fits]
    prompt.pairs = [(new[i], new[j], share) for i, j, share in prompt.pairs if i in new and j in new]
    return bool(prompt.pairs)


def _add(prompt: Compared, comparison: Comparison) -> None:
    """Take in all pairs of a ranking; texts that stand in the store more than once are one answer."""
    ranked: list[tuple[int, int]] = []
    for rank, group in enumerate(comparison.ranking):
        for answer in group:
            if answer.text not in prompt.texts:
                prompt.texts.append(answer.text)
            ranked.append((rank, prompt.texts.index(answer.text)))
    for (rank_a, a), (rank_b, b) in combinations(ranked, 2):
        if a != b:
            prompt.pairs.append((a, b, 0.5 if rank_a == rank_b else 1.0))


def pairs_of(prompt: Compared, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places (P, 2) and shares of preference (P,) for `policy_losses.ranking_loss`."""
    places_P2 = torch.tensor([(i, j) for i, j, _ in prompt.pairs], device=device)
    return places_P2, torch.tensor([share for _, _, share in prompt.pairs], device=device)


def as_answers(prompts: Sequence[Compared]) -> Answers:
    """Every answer of every prompt as a row."""
    ids = [pair for prompt in prompts for pair in prompt.ids]
    return pad_answers([asked for asked, _ in ids], [answer for _, answer in ids], default_device())


def as_micro_batches(prompts: list[Compared], micro_tokens: int, cores: int) -> list[list[Compared]]:
    """Whole prompts together, at least one micro-batch for each core, bounded in tokens with their padding; on a CPU at
    most `_PIECE_PROMPTS` prompts. Prompts of similar length are neighbours, so that there is little padding."""
    most = -(-len(prompts) // max(1, cores))
    if default_device().type == "cpu":
        most = min(most, _PIECE_PROMPTS)
    pieces: list[list[Compared]] = []
    for prompt in sorted(prompts, key=_longest):  # the newest of a piece is its longest
        if pieces and len(pieces[-1]) < most:
            answers = sum(len(other.ids) for other in (*pieces[-1], prompt))
            if answers * _longest(prompt) <= micro_tokens:
                pieces[-1].append(prompt)
                continue
        pieces.append([prompt])
    return pieces


def _longest(prompt: Compared) -> int:
    return max(len(asked) + len(answer) for asked, answer in prompt.ids)
