"""From a budget to a recipe: the law says how large and how long, the machine how fast, the shape what it takes.

It stands beside the rooms because it joins two that may not know each other: `scaling`, which has numbers only, and
`train`, which measures.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from talaria.config import to_toml
from talaria.errors import UsageError
from talaria.model.shape import ModelShape
from talaria.scaling.devices import HERE, device_flops
from talaria.scaling.planner import Allocation, Budget, Loss, Rule, allocate
from talaria.scaling.sizes import recipe_text, shape_near, times_over_the_world, vocabulary_for
from talaria.train.settings import PlanSettings, PretrainSettings, TrainingPlan, plan_pretraining

_CONTEXTS = ((2e7, 256), (1e9, 1024), (math.inf, 2048))
_LARGEST_PROBED, _LARGEST_PROBED_ON_GPU = 8e6, 3e8
"""Parameters; a larger model reaches the FLOP rate of this one, or more."""
_PROBED_TOKENS, _PROBED_TOKENS_ON_GPU = 4096, 32768
_FEWEST_TOKENS, _MOST_TOKENS = 1e3, 1e18
"""Of a run, and at most so many parameters: outside, a budget has a zero too many or too few."""
_MOST_TIMES_OVER_THE_WORLD = 5
"""Above, a run is not held against a loss that supposes new text."""
_MOST_OVER_BEST = 4
"""Times the best size, that the smallest shape may have."""


@dataclass(frozen=True)
class Plan:
    """What a budget gives. `hours`, `cost` and `memory_bytes` are of the recipe's shape, whose own count of parameters
    is `shape.n_params()`; `allocation` has the law's."""

    allocation: Allocation
    rule: Rule
    shape: ModelShape
    training: TrainingPlan
    device: str
    flops_per_second: float
    hours: float
    memory_bytes: int
    cost: float | None
    recipe: str

    def to_json(self) -> dict[str, Any]:
        """What `talaria plan --json` prints."""
        loss = self.allocation.loss
        return {
            "parameters": round(self.allocation.parameters),
            "tokens": round(self.allocation.tokens),
            "flops": self.allocation.flops,
            "hours": self.hours,
            "memory_bytes": self.memory_bytes,
            "loss": {"value": None, "low": None, "high": None} if loss is None else vars(loss),
            "cost": self.cost,
            "epochs": self.allocation.epochs,
            "law": self.rule.name,
            "device": self.device,
            "flops_per_second": self.flops_per_second,
            "recipe": {
                "parameters": self.shape.n_params(),
                "depth": self.shape.n_layers,
                "d_model": self.shape.d_model,
                "n_heads": self.shape.n_heads,
                "vocab_size": self.shape.vocab_size,
                "context": self.shape.context,
                "tokens": self.training.tokens,
                "batch_tokens": self.training.batch_tokens,
                "steps": self.training.steps,
                "learning_rate": self.training.learning_rate,
            },
            "notes": [self.rule.note, *self.allocation.notes],
        }


def make_plan(
    rule: Rule,
    budget: Budget,
    *,
    hours: float | None = None,
    money: float | None = None,
    device: str = HERE,
    devices: int = 1,
    utilisation: float = 0.4,
    price: float | None = None,
    context: int | None = None,
    vocab_size: int | None = None,
    corpus: Sequence[Path] = (),
) -> Plan:
    """Share a budget out by `rule`, choose a shape, tell what it takes. The least of compute, hours and money binds.

    Raises UsageError where an option is missing or out of range.
    """
    seconds = _seconds(hours, money, price, devices)
    if device != HERE:
        device_flops(device, utilisation)  # refuses before anything is measured
    elif devices > 1:
        raise UsageError(f"--devices {devices}: name a --device; this machine is measured as it is")
    for path in corpus:
        if not path.exists():
            raise UsageError(f"--corpus {path}: no such file or folder")
    measured: dict[ModelShape, float] = {}

    def speed(shape: ModelShape) -> float:
        if device != HERE:
            return devices * device_flops(device, utilisation)
        probed = _probed(shape)
        if probed not in measured:
            measured[probed] = measured_flops(probed)
        return measured[probed]

    def shape_of(allocation: Allocation) -> ModelShape:
        vocabulary = vocab_size or vocabulary_for(allocation.parameters)
        window = context or next(size for limit, size in _CONTEXTS if allocation.parameters < limit)
        return shape_near(allocation.parameters, vocabulary, window)

    def chosen(budget: Budget) -> Allocation:
        found = allocate(rule, budget) if seconds is None else _within(rule, budget, seconds, speed, shape_of)
        if not _FEWEST_TOKENS <= found.tokens <= _MOST_TOKENS or found.parameters > _MOST_TOKENS:
            raise UsageError(
                f"{found.parameters:.3g} parameters on {found.tokens:.3g} tokens is no run; give "
                f"{'more' if found.tokens < _FEWEST_TOKENS else 'less'} compute, time or text"
            )
        return found

    allocation = chosen(budget)
    shape = shape_of(allocation)
    if shape.n_params() > _MOST_OVER_BEST * allocation.parameters:
        smallest = f"the smallest shape of a recipe with a vocabulary of {shape.vocab_size:,} has {shape.n_params():,}"
        if budget.params is not None:
            raise UsageError(f"--parameters {budget.params:,.0f}: {smallest}; give more, or a smaller --vocab-size")
        note = f"{smallest}: that is planned, where {allocation.parameters:,.0f} would be best"
        allocation = chosen(replace(budget, params=float(shape.n_params()), served_tokens=None))
        allocation = replace(allocation, notes=(note, *allocation.notes))
    rate = speed(shape)
    tokens = max(1, round(allocation.tokens))
    training = plan_pretraining(PretrainSettings(tokens=tokens), shape, tokens)
    taken = training.tokens * shape.flops_per_token(training.context) / rate / 3600
    hourly_cost = None if price is None else devices * price
    memory = _memory(shape, training)
    times = 0.0 if corpus else times_over_the_world(training.tokens)
    is_counted = times <= _MOST_TIMES_OVER_THE_WORLD
    if not is_counted:
        often = f"some {float(f'{times:.1g}'):,.0f} times, which the loss does not count"
        note = f"without --corpus the recipe reads the embedded world {often}"
        allocation = replace(allocation, notes=(*allocation.notes, note))
    where = "this machine" if device == HERE else device
    predicted = f"{shape.n_params():,} parameters, {training.tokens:,} tokens; predicted {taken:.3g} hours on {where}"
    if allocation.loss is not None:
        predicted += f", loss {allocation.loss.value:.3f}"
    return Plan(
        allocation=allocation,
        rule=rule,
        shape=shape,
        training=training,
        device=device,
        flops_per_second=rate,
        hours=taken,
        memory_bytes=memory,
        cost=None if hourly_cost is None else taken * hourly_cost,
        recipe=recipe_text(
            shape,
            training.tokens,
            training.batch_tokens,
            training.learning_rate,
            corpus,
            shlex.join(["talaria", *sys.argv[1:]]).replace("\n", " "),
            predicted,
            to_toml(_prediction(rule, allocation.loss if is_counted else None, taken, hourly_cost)),
        ),
    )


def _prediction(rule: Rule, loss: Loss | None, hours: float, hourly_cost: float | None) -> PlanSettings:
    """What the trainer holds the run against. A published law's loss is of another text, so only a fit's is told, and
    only with an interval; of repeated text too, whose worth the plan has reckoned with."""
    if rule.is_published or loss is None or loss.low is None or loss.high is None:
        return PlanSettings(hours=hours, hourly_cost=hourly_cost)
    return PlanSettings(hours=hours, hourly_cost=hourly_cost, loss=(loss.low, loss.high))


def plan_table(plan: Plan) -> Group:
    """The plan as a person reads it."""
    allocation, shape, training = plan.allocation, plan.shape, plan.training
    table = Table(title=f"A run by {plan.rule.name}'s law", title_justify="left", box=SIMPLE, show_header=False)
    table.add_column("what")
    table.add_column("how much", overflow="fold")
    table.add_row("parameters", f"{allocation.parameters:,.0f} (the recipe's shape: {shape.n_params():,})")
    table.add_row("tokens", f"{allocation.tokens:,.0f}, {allocation.tokens / allocation.parameters:.1f} a parameter")
    if allocation.epochs is not None:
        table.add_row("epochs", f"{allocation.epochs:.2f} over the text at hand")
    table.add_row("compute", f"{allocation.flops:.3g} FLOPs")
    table.add_row("shape", f"{shape.n_layers} layers, width {shape.d_model}, context {shape.context}")
    table.add_row(
        "training", f"{training.steps:,} steps of {training.batch_tokens:,} tokens, rate {training.learning_rate:.2g}"
    )
    where = "measured here" if plan.device == HERE else f"on {plan.device}"
    table.add_row("time", f"{plan.hours:,.3g} hours at {plan.flops_per_second:.3g} FLOP/s, {where}")
    if plan.cost is not None:
        table.add_row("cost", f"{plan.cost:,.2f}")
    table.add_row("memory", f"{plan.memory_bytes / 1e9:,.2f} GB to train")
    if allocation.loss is not None:
        loss = allocation.loss
        interval = "" if loss.low is None else f" (90 %: {loss.low:.3f} to {loss.high:.3f})"
        table.add_row("loss", f"{loss.value:.3f}{interval}")
    return Group(table, *(Text(f"note: {note}") for note in (plan.rule.note, *allocation.notes)))


def _seconds(hours: float | None, money: float | None, price: float | None, devices: int) -> float | None:
    for name, value in (("hours", hours), ("money", money), ("price", price)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{name} {value:g}: give a number above 0")
    if money is not None and price is None:
        raise UsageError("--money needs --price, what one device costs for an hour")
    limits = [hours * 3600] if hours is not None else []
    if money is not None and price is not None:
        limits.append(money / price / devices * 3600)
    return min(limits, default=None)


def _within(rule: Rule, budget: Budget, seconds: float, speed: Any, shape_of: Any) -> Allocation:
    """The allocation whose run takes `seconds`. Real tokens cost more than 6 N operations (attention, the head), and
    how many a second are done depends on the size; three rounds agree."""
    flops = 1e15 if budget.flops is None else budget.flops
    for _ in range(3):
        allocation = allocate(rule, Budget(flops, budget.tokens, budget.params, budget.served_tokens))
        shape = shape_of(allocation)
        tokens = seconds * speed(shape) / shape.flops_per_token()
        if budget.flops is not None:
            tokens = min(tokens, budget.flops / 6 / allocation.parameters)
        within = 6 * allocation.parameters * tokens
        if abs(math.log(within / flops)) < 0.01:
            break
        flops = within
    # Sizes come in steps and speeds differ between them, so the size may go to and fro; the time is kept in any case.
    final = allocate(rule, Budget(within, budget.tokens, allocation.parameters))
    return replace(final, notes=tuple(dict.fromkeys((*allocation.notes, *final.notes))))


def _probed(shape: ModelShape) -> ModelShape:
    if shape.n_params() <= (_LARGEST_PROBED_ON_GPU if _on_gpu() else _LARGEST_PROBED):
        return shape
    if _on_gpu():
        return shape_near(0.9 * _LARGEST_PROBED_ON_GPU, shape.vocab_size, shape.context)
    return shape_near(0.9 * _LARGEST_PROBED, min(shape.vocab_size, 4096), min(shape.context, 256))


def _free_bytes() -> int:
    import torch

    free: int = torch.cuda.mem_get_info()[0]
    return free


def _on_gpu() -> bool:
    from talaria.model.device import default_device

    return default_device().type != "cpu"


def measured_flops(shape: ModelShape) -> float:
    """FLOP/s of the real step on this machine; of a large shape, those of one that can be probed."""
    from talaria.train.sizing import probe

    probed = _probed(shape)
    rows = max(1, (_PROBED_TOKENS_ON_GPU if _on_gpu() else _PROBED_TOKENS) // probed.context)
    training = plan_pretraining(PretrainSettings(), probed, 20 * probed.n_params())
    n = min(training.rows, rows)
    micro_rows = min(training.micro_rows, n)
    while micro_rows > 1 and _on_gpu() and _bytes(probed, micro_rows, probed.context) > _free_bytes() / 2:
        micro_rows = (micro_rows + 1) // 2
    seconds = probe(probed, n, probed.context, micro_rows, PretrainSettings().optimizer)
    return n * probed.context * probed.flops_per_token() / seconds


def _memory(shape: ModelShape, training: TrainingPlan) -> int:
    from talaria.train.doctor import TRAINING_PROGRAM_BYTES

    return TRAINING_PROGRAM_BYTES + _bytes(shape, training.micro_rows, training.context)


def _bytes(shape: ModelShape, rows: int, context: int) -> int:
    from talaria.train.doctor import training_bytes

    return training_bytes(shape, rows, context, PretrainSettings())
