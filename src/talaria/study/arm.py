"""One arm: a model trained from random weights on a stream of symbols, and its scores along the way as results.csv.

    train_arm(ArmSettings(...), folder)

The rate is held after its warmup, so that a checkpoint is what a run stopped there would have been; what is scored is
an average of the weights in which late steps count most (Shamir and Zhang 2013, polynomial decay), in place of a rate
that falls. Shapes: B rows, T positions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from talaria.model.shape import ModelShape, shape_from_depth
from talaria.model.transformer import Transformer
from talaria.report.results import ResultRow, write_results
from talaria.study.scoring import Scored, encode, score_items
from talaria.study.settings import ArmSettings
from talaria.tokens.batches import Batch
from talaria.train.optim import make_optimizers
from talaria.train.settings import OptimizerSettings
from talaria.train.step import StepState, optimisation_step, summed_loss
from talaria.world.symbols import ALPHABET, TASKS, build_symbols, can_be_worked, documents, items

LOSS_TASK = "held-out text"
_WARMUP_STEPS = 20
_LATE = 8
"""Degree of the average: the weights of step s count about as s^8, the last tenth of the steps for most of it."""
_HELD_OUT_BATCHES = 8


def train_arm(settings: ArmSettings, folder: Path) -> None:
    """Train, score at every checkpoint, and write `folder`/results.csv."""
    world = build_symbols(settings.seed, settings.names)
    shape = arm_shape(settings)
    model = Transformer(shape, torch.Generator().manual_seed(settings.seed))
    average = copy.deepcopy(model)
    optimizers = make_optimizers(model, OptimizerSettings(name="muon"), settings.learning_rate)
    state = StepState()
    batches = _batches(documents(world, settings.corpus, settings.seed), settings)
    # The stream goes on for ever, so that another seed of it gives text that the model has not read.
    held_out = list(
        islice(_batches(documents(world, settings.corpus, settings.seed + 1_000_000), settings), _HELD_OUT_BATCHES)
    )
    asked = {
        (task, strategy): items(world, task, strategy == "worked", settings.items)
        for task in TASKS
        for strategy in ("direct", "worked")[: 1 + can_be_worked(task)]
    }
    due = set(checkpoint_steps(settings))
    rows: list[ResultRow] = []
    for step in range(1, max(due) + 1):
        optimisation_step(
            model,
            optimizers,
            next(batches),
            state,
            micro_rows=settings.batch_tokens // settings.context,
            rate_share=min(1.0, step / _WARMUP_STEPS),
            max_grad_norm=1.0,
            document_attention=True,
        )
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), (_LATE + 1) / (step + _LATE))
        if step in due:
            scored = [(LOSS_TASK, "", [_held_out_loss(average, held_out)])]
            scored += [(task, strategy, score_items(average, few)) for (task, strategy), few in asked.items()]
            rows += [_row(settings, shape, step, task, way, one) for task, way, several in scored for one in several]
    write_results(rows, folder / "results.csv")


def arm_shape(settings: ArmSettings) -> ModelShape:
    """Heads of 16 channels, whatever the width."""
    return shape_from_depth(
        settings.depth,
        len(ALPHABET),
        settings.context,
        d_model=settings.width,
        n_heads=settings.width // 16 or 1,
        d_head=16,
    )


def checkpoint_steps(settings: ArmSettings) -> list[int]:
    """Steps at which an arm is scored: even in their log, from a 64th of the last one on."""
    last = settings.tokens // settings.batch_tokens
    return sorted({round(step) for step in np.geomspace(last / 64, last, settings.checkpoints)})


def _batches(stream: Iterator[str], settings: ArmSettings) -> Iterator[Batch]:
    """Rows packed with whole and cut documents; attention stays inside a document."""
    ids: list[int] = []
    while True:
        while len(ids) <= settings.batch_tokens:
            ids += encode(next(stream))
        window = torch.tensor(ids[: settings.batch_tokens + 1])
        ids = ids[settings.batch_tokens :]
        inputs_BT, targets_BT = (part.view(-1, settings.context) for part in (window[:-1], window[1:]))
        documents_BT = (inputs_BT == 0).long().cumsum(dim=1)
        yield Batch(inputs_BT, targets_BT, documents_BT, torch.ones_like(inputs_BT, dtype=torch.bool))


@torch.inference_mode()
def _held_out_loss(model: Transformer, batches: list[Batch]) -> Scored:
    """Mean nats a token, with its standard error over the batches."""
    losses: Tensor = torch.stack([summed_loss(model, one, True) / one.inputs_BT.numel() for one in batches]).double()
    n = sum(one.inputs_BT.numel() for one in batches)
    return Scored("loss", float(losses.mean()), float(losses.std() / len(losses) ** 0.5), n)


def _row(settings: ArmSettings, shape: ModelShape, step: int, task: str, strategy: str, scored: Scored) -> ResultRow:
    tokens = step * settings.batch_tokens
    return ResultRow(
        model=f"{settings.corpus}-{settings.width}",
        params=shape.n_params(),
        tokens=tokens,
        flops=float(shape.flops_per_token(settings.context)) * tokens,
        seed=settings.seed,
        step=step,
        task=task,
        task_version=settings.tasks_version,
        strategy=strategy,
        shots=0,
        metric=scored.metric,
        score=scored.score,
        stderr=scored.stderr,
        n=scored.n,
    )
