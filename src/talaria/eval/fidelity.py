"""Two models of one tokenizer and held-out text in, how far the second has moved from the first out.

    fidelity = compare_models(reference, candidate, batches_of_text(file, tokenizer, 1024, 16384))

Both read the same windows side by side, so the figures are paired: a small change shows in a few thousand tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from talaria.errors import UserError
from talaria.model.compiled import CompiledTransformer
from talaria.model.transformer import Transformer
from talaria.tokens.batches import Batch, PackedBatches
from talaria.tokens.shards import Shards
from talaria.tokens.tokenizer import Tokenizer
from talaria.train.step import document_positions_and_mask

_LOGITS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Fidelity:
    """Means over `n_tokens` next-token predictions; losses and divergence in nats."""

    n_tokens: int
    reference_loss: float
    candidate_loss: float
    divergence: float
    """KL(reference || candidate) of the distributions over the vocabulary."""
    agreement: float
    """Share of places where the likeliest token is the same."""

    @property
    def loss_change(self) -> float:
        """Relative to the reference's loss: 0.01 is one percent more."""
        return self.candidate_loss / self.reference_loss - 1


@torch.inference_mode()
def compare_models(
    reference: Transformer, candidate: Transformer | CompiledTransformer, batches: Iterable[Batch]
) -> Fidelity:
    """Score every counted token of `batches` with both models. Raises UserError where there is none."""
    n_tokens, sums = 0, torch.zeros(4, dtype=torch.float64)
    for batch in batches:
        positions_BT, mask = document_positions_and_mask(batch.document_ids_BT)
        counted_BT = batch.loss_mask_BT
        hiddens = [model.hidden(batch.inputs_BT, positions_BT, mask)[counted_BT] for model in (reference, candidate)]
        targets_N = batch.targets_BT[counted_BT]
        n_at_once = max(1, _LOGITS_AT_ONCE // reference.shape.vocab_size)
        pieces = zip(*(torch.split(tensor, n_at_once) for tensor in (*hiddens, targets_N)), strict=True)
        for theirs_ND, ours_ND, part_N in pieces:
            sums += _sums(reference.head(theirs_ND), candidate.head(ours_ND), part_N)
        n_tokens += len(targets_N)
    if n_tokens == 0:
        raise UserError("the held-out text has fewer than two tokens: nothing to measure; give more with --text FILE")
    reference_loss, candidate_loss, divergence, agreement = (sums / n_tokens).tolist()
    return Fidelity(n_tokens, reference_loss, candidate_loss, divergence, agreement)


def _sums(reference_NV: Tensor, candidate_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Sums over N of both losses, of the divergence and of the places where the likeliest token is the same."""
    agreement = (reference_NV.argmax(dim=-1) == candidate_NV.argmax(dim=-1)).sum()
    p_NV, q_NV = reference_NV.log_softmax(dim=-1), candidate_NV.log_softmax(dim=-1)
    losses = [-log_probs_NV.gather(1, targets_N[:, None]).sum() for log_probs_NV in (p_NV, q_NV)]
    divergence = (p_NV.exp() * (p_NV - q_NV)).sum()
    return torch.stack([*losses, divergence, agreement]).double().cpu()


def batches_of_shards(folder: Path, tokenizer: Tokenizer, window: int, n_tokens: int) -> Iterator[Batch]:
    """The validation split below `folder`, in order, up to `n_tokens` rounded up to a whole window."""
    shards = Shards(folder, "validation")
    if shards.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"{folder}: a vocabulary of {shards.vocab_size}, but the model's has {tokenizer.vocab_size}; "
            "give text with --text FILE"
        )
    return islice(PackedBatches(shards, window, 1, shuffle=False, epochs=1), -(-n_tokens // window))


def batches_of_text(path: Path, tokenizer: Tokenizer, window: int, n_tokens: int) -> Iterator[Batch]:
    """A UTF-8 file as one document, cut into windows, up to `n_tokens` predictions."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); give another file with --text") from None
    ids = torch.tensor(tokenizer.prompt_prefix_ids + tokenizer.encode(text), dtype=torch.int64)[: n_tokens + 1]
    for start in range(0, len(ids) - 1, window):
        piece = ids[start : start + window + 1][None]
        document = torch.zeros_like(piece[:, 1:])
        yield Batch(piece[:, :-1], piece[:, 1:], document, document == 0)


def fidelity_table(found: Fidelity, bytes_before: int, bytes_after: int, name: str) -> Table:
    """Before, after and change, for a terminal."""
    table = Table("", "before", name, "change")
    table.add_row(
        "weights, MB", f"{bytes_before / 1e6:.1f}", f"{bytes_after / 1e6:.1f}", f"{bytes_after / bytes_before:.1%}"
    )
    before, after = found.reference_loss, found.candidate_loss
    table.add_row("held-out loss", f"{before:.4f}", f"{after:.4f}", f"{found.loss_change:+.2%}")
    ratio = math.exp(min(after - before, 700))
    perplexities = [f"{math.exp(min(loss, 700)):.3f}" for loss in (before, after)]
    table.add_row("perplexity", *perplexities, f"{ratio - 1:+.2%}")
    table.add_row("same likeliest token", "", f"{found.agreement:.2%}", "")
    table.add_row("mean KL divergence, nats", "", f"{found.divergence:.5f}", "")
    table.caption = f"{found.n_tokens:,} tokens"
    return table
