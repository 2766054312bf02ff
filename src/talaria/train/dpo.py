"""Direct preference optimisation (Rafailov et al. 2023): a fine-tuned model and comparisons in, a better policy out.

The same pairs, batches and loss as the reward model's; the score of an answer is beta times its log-ratio to the
fine-tuned model. Writes model/, checkpoints/, metrics.jsonl and training.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from talaria.files import atomic_folder
from talaria.model.checkpoint import load_model, save_model
from talaria.model.device import default_device
from talaria.model.lora import add_lora, merged_copy
from talaria.model.transformer import Transformer
from talaria.train.answers import answer_log_probs
from talaria.train.policy_losses import preference_loss
from talaria.train.reward import Compared, as_answers, as_micro_batches, batch_of, pairs_of, read_compared, same_data
from talaria.train.settings import DpoSettings
from talaria.train.tuning import Tuning


def dpo(settings: DpoSettings, base: Path, databases: Sequence[str | Path], seed: int, folder: Path) -> None:
    """Improve the model at `base` by the comparisons in `databases`."""
    policy, tokenizer = load_model(base)
    if settings.lora is not None:
        add_lora(policy, settings.lora.rank, settings.lora.alpha, torch.Generator().manual_seed(seed))
    reference = load_model(base)[0].to(default_device()).requires_grad_(False)
    context = min(settings.context or policy.shape.context, policy.shape.context)
    training, held_out, dropped = read_compared(databases, tokenizer, context, settings.validation_share, seed)
    per_epoch = -(-len(training) // settings.batch_prompts)
    tuning = Tuning(
        "dpo",
        folder,
        {"policy": policy},
        policy,
        tokenizer,
        settings.optimizer,
        settings.epochs * per_epoch,
        learning_rates={"policy": settings.optimizer.learning_rate or 1e-4},
        checkpoint_every_seconds=settings.checkpoint_every_seconds,
        seed=seed,
    )

    same_data(tuning, training)

    def loss_of(prompts: list[Compared]) -> Tensor:
        return torch.stack(prompt_losses(policy, reference, prompts, settings.beta)).sum()

    with tuning.progress:
        while not tuning.finished:
            chosen = batch_of(training, settings.batch_prompts, tuning.step, seed)
            micro = as_micro_batches(chosen, settings.micro_batch_tokens, tuning.cores(len(chosen)))
            loss = tuning.backward(loss_of, micro, len(chosen), "policy") / len(chosen)
            norm = tuning.update(loss)
            tuning.end_step(f"loss {loss:.3f}", train_loss=loss, grad_norm=norm, prompts=len(chosen))

    with torch.no_grad():
        losses = [
            float(loss) for prompt in held_out for loss in prompt_losses(policy, reference, [prompt], settings.beta)
        ]
    with atomic_folder(folder / "model") as target:
        save_model(merged_copy(policy), tokenizer, target)
    tuning.close(
        prompts=len(training),
        prompts_held_out=len(held_out),
        prompts_dropped=dropped,
        held_out_loss=sum(losses) / len(losses),
    )


def prompt_losses(
    policy: Transformer, reference: Transformer, prompts: Sequence[Compared], beta: float
) -> list[Tensor]:
    """The loss of each prompt: the mean over its pairs."""
    answers = as_answers(prompts)
    own_N = answer_log_probs(policy, answers)[0].sum(dim=1)
    with torch.no_grad():
        reference_N = answer_log_probs(reference, answers)[0].sum(dim=1)
    losses, start = [], 0
    for prompt in prompts:
        end = start + len(prompt.texts)
        losses.append(preference_loss(own_N[start:end], reference_N[start:end], *pairs_of(prompt, own_N.device), beta))
        start = end
    return losses
