"""The one optimisation step: accumulate, normalise by the global count of loss tokens, check, clip, step.

However a batch is cut into micro-batches, packed or spread over ranks, the step is the same up to float rounding,
because gradients are summed over tokens and divided once, by the count over the whole batch on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from talaria.errors import UserError
from talaria.model.transformer import Transformer
from talaria.tokens.batches import Batch
from talaria.train import parallel
from talaria.train.cores import backward_each, cores_for, rows_each, threads
from talaria.train.losses import linear_cross_entropy
from talaria.train.optim import set_rate

_MAX_SKIPPED = 10
_SPIKE_SIGMAS = 6.0


@dataclass(frozen=True)
class StepResult:
    loss: float
    """Mean nats per counted token, over all ranks."""
    n_tokens: int
    """Counted tokens, over all ranks."""
    n_positions: int
    """Computed positions, counted or not, over all ranks."""
    grad_norm: float
    """L2 norm before clipping."""
    skipped: bool
    """Loss or gradient was not finite, so the weights stayed as they were."""
    spike: bool
    """Loss more than six deviations above its running mean; clipping bounds what the step can do."""
    noise_scale: float | None
    """Gradient noise scale in tokens, where this step measured it."""


@dataclass
class StepState:
    """What a step remembers; part of a checkpoint."""

    skipped_in_a_row: int = 0
    loss_mean: float = 0.0
    loss_variance: float = 0.0
    losses_seen: int = 0
    noise_trace: float = 0.0
    noise_square: float = 0.0


def summed_loss(model: Transformer, batch: Batch, document_attention: bool) -> Tensor:
    """Sum of next-token losses in nats over the batch's counted tokens."""
    positions_BT, mask = None, None
    if document_attention:
        positions_BT, mask = document_positions_and_mask(batch.document_ids_BT)
    hidden_BTD = model.hidden(batch.inputs_BT, positions_BT, mask)
    weight_VD = model.head_weight()
    if bool(batch.loss_mask_BT.all()):
        return linear_cross_entropy(hidden_BTD.flatten(0, 1), weight_VD, batch.targets_BT.flatten())
    return linear_cross_entropy(hidden_BTD[batch.loss_mask_BT], weight_VD, batch.targets_BT[batch.loss_mask_BT])


def document_positions_and_mask(document_ids_BT: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Positions counted from each document's start, and the causal mask (B,1,T,T) that stays inside a document."""
    starts_BT = torch.ones_like(document_ids_BT, dtype=torch.bool)
    starts_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    if not bool(starts_BT[:, 1:].any()):
        return None, None
    index_T = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device)
    start_of_BT = torch.where(starts_BT, index_T, 0).cummax(dim=1).values
    mask_BTT = (index_T[None, None, :] <= index_T[None, :, None]) & (index_T[None, None, :] >= start_of_BT[:, :, None])
    return index_T - start_of_BT, mask_BTT[:, None]


def optimisation_step(
    model: Transformer,
    optimizers: dict[str, torch.optim.Optimizer],
    batch: Batch,
    state: StepState,
    *,
    micro_rows: int,
    rate_share: float,
    max_grad_norm: float,
    document_attention: bool = False,
    measure_noise: bool = False,
    dtype: torch.dtype = torch.float32,
) -> StepResult:
    """One update from this rank's rows of the global batch. Matrix products are of `dtype`.

    Raises UserError after ten steps in a row without a finite loss and gradient.
    """
    rows, context = batch.inputs_BT.shape
    cores = cores_for(model, rows)
    micro_batches = split_rows(batch, rows_each(model, rows, context, micro_rows, cores))
    if measure_noise and len(micro_batches) == 1 and rows > 1:
        micro_batches = split_rows(batch, (rows + 1) // 2)
    counts = [int(micro.loss_mask_BT.sum()) for micro in micro_batches]
    n_tokens = parallel.sum_over_ranks(sum(counts))
    if n_tokens == 0:
        raise UserError("a batch without a single counted token; check the conversations' assistant turns")

    def loss_of(micro: Batch) -> Tensor:
        with torch.autocast(micro.inputs_BT.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return summed_loss(model, micro, document_attention)

    total, first_square = 0.0, 0.0
    for i, loss_sum in enumerate(backward_each(loss_of, micro_batches, model, n_tokens, cores)):
        total += loss_sum
        if measure_noise and i == 0:
            first_square = float(_grad_norm(model)) ** 2 * (n_tokens / max(counts[0], 1)) ** 2
    parallel.sum_gradients(model)
    loss = parallel.sum_over_ranks(total) / n_tokens
    norm, finite = apply_gradients(
        [model], optimizers, state, loss, rate_share=rate_share, max_grad_norm=max_grad_norm, cores=cores
    )
    noise = None
    if finite and measure_noise and len(micro_batches) > 1:
        noise = _noise_scale(state, first_square, counts[0], norm**2, n_tokens)
    n_positions = batch.inputs_BT.numel() * parallel.world_size()
    return StepResult(loss, n_tokens, n_positions, norm, not finite, finite and _is_spike(state, loss), noise)


def apply_gradients(
    modules: Sequence[nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    state: StepState,
    loss: float,
    *,
    rate_share: float,
    max_grad_norm: float,
    cores: int = 1,
) -> tuple[float, bool]:
    """Clip the gradient of each module, step, and forget the gradients; returns the first module's norm before clipping
    and whether loss and gradients were finite. If not, nothing changes, and ten times in a row is a UserError."""
    # A small model's norms and moments take one core a millisecond; several lose far more whenever one of them is busy.
    n_threads = 1 if cores > 1 else torch.get_num_threads()
    with threads(n_threads):
        norms = [float(torch.nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm)) for module in modules]
    finite = bool(torch.isfinite(torch.tensor([loss, *norms])).all())
    if finite:
        set_rate(optimizers, rate_share)
        for name, optimizer in optimizers.items():
            # Muon is matrix products, which are worth sharing.
            with threads(torch.get_num_threads() if name == "muon" else n_threads):
                optimizer.step()
        for module in modules:
            # Fused optimizers leave no mark on what they changed, and an engine that keeps prefixes looks for one.
            torch.autograd.graph.increment_version(list(module.parameters()))
    for optimizer in optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    state.skipped_in_a_row = 0 if finite else state.skipped_in_a_row + 1
    if state.skipped_in_a_row >= _MAX_SKIPPED:
        raise UserError(
            f"{_MAX_SKIPPED} steps in a row had no finite loss; lower optimizer.learning_rate, or use dtype float32"
        )
    return norms[0], finite


def split_rows(batch: Batch, rows: int) -> list[Batch]:
    """Micro-batches of at most `rows` rows."""
    return [Batch(*pieces) for pieces in zip(*(torch.split(tensor, rows) for tensor in batch), strict=True)]


def _grad_norm(model: nn.Module) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def _is_spike(state: StepState, loss: float) -> bool:
    """Compare with a running mean and variance of the last ~50 losses, then take the loss in."""
    deviation = loss - state.loss_mean
    spike = state.losses_seen >= 20 and deviation > _SPIKE_SIGMAS * max(state.loss_variance, 1e-12) ** 0.5
    state.losses_seen += 1
    share = max(1 / state.losses_seen, 0.02)
    state.loss_mean += share * deviation
    state.loss_variance = (1 - share) * (state.loss_variance + share * deviation**2)
    return spike


def _noise_scale(state: StepState, small_square: float, small: int, big_square: float, big: int) -> float | None:
    """B_simple = tr(covariance) / |gradient|^2 in tokens, from gradient norms at two batch sizes (McCandlish et al.
    2018, "An Empirical Model of Large-Batch Training", appendix A.1), both averaged over time before the ratio."""
    if not small < big:
        return None
    square = (big * big_square - small * small_square) / (big - small)
    trace = (small_square - big_square) / (1 / small - 1 / big)
    decay = 0.9
    state.noise_square = decay * state.noise_square + (1 - decay) * square
    state.noise_trace = decay * state.noise_trace + (1 - decay) * trace
    if state.noise_square <= 0 or state.noise_trace <= 0:
        return None
    return state.noise_trace / state.noise_square
