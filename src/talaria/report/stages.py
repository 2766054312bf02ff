"""results.csv in, the table of what each stage gives and costs out: one column a model, one row an ability.

Instruction tuning may cost reasoning, dialogue tuning in-context learning, PPO what pretraining taught: a stage is read
against the one it began as.
"""

from __future__ import annotations

import math
from html import escape

from talaria.report.card import duration
from talaria.report.results import ResultRow, wilson_interval
from talaria.report.run_data import RunData, title_of

_ABILITIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("zero-shot", "facts that training asks", ("facts_",)),
    ("", "facts that it only states", ("unasked_",)),
    ("gain from examples", "points, with examples less without", ()),
    ("reasoning", "two facts joined", ("two_hop_",)),
    ("", "two-digit sums", ("sums_",)),
    ("dialogue", "questions of two turns", ("dialogue_",)),
    ("abstention", "“I don't know” for nobody", ("unknown_",)),
    ("", "harmful requests refused", ("harmful_",)),
    ("", "harmless ones answered", ("benign_",)),
    ("pretraining text", "loss on held-out pages, nats a token", ()),
)
"""Group, row, and how the names of its tasks in the world's exam begin."""

_READS = {"ppo": ("comparisons", "reward"), "dpo": ("comparisons",)}
"""Kind of policy -> stages that it takes besides its own. GRPO takes none where a verifier scores."""

Cell = tuple[float, float, float]
"""A score and the ends of its interval."""


def stages_section(data: RunData) -> str:
    """The table; empty for a run that measured no more than one model on an exam, or whose exam is not the world's."""
    models = [name for name in data.models if name != "untrained"]
    rows = [
        (group, name, {model: _cell(data, model, name, tasks) for model in models}) for group, name, tasks in _ABILITIES
    ]
    rows = [row for row in rows if any(row[2].values())]
    if len(models) < 2 or not any(row.task.startswith("facts_") for row in data.results):
        return ""
    heads = "".join(f'<th class="n">{escape(title_of(model, data))}</th>' for model in models)
    parts = [
        "<p>All questions of a kind together, both languages, with 95 % intervals over questions. ▲ and ▼: better or "
        "worse than the model it began as (pretrained for fine-tuned, fine-tuned for the others), their intervals "
        "apart. One seed: another run may differ by more.</p>",
        f'<div class="wide"><table class="stages"><thead><tr><th></th><th></th>{heads}</tr></thead><tbody>',
    ]
    for group, name, cells in rows:
        shown = "".join(f'<td class="n">{_shown(name, cells, model)}</td>' for model in models)
        parts.append(f'<tr><th>{escape(group)}</th><td class="unit">{escape(name)}</td>{shown}</tr>')
    costs = "".join(f'<td class="n">{_cost(data, model)}</td>' for model in models)
    parts.append(f'<tr><th>cost</th><td class="unit">time of its stages here</td>{costs}</tr>')
    return "".join([*parts, "</tbody></table></div>"])


def _cell(data: RunData, model: str, name: str, tasks: tuple[str, ...]) -> Cell | None:
    of_model = [row for row in data.results if row.model == model]
    if tasks:
        asked = [row for row in of_model if row.metric == "accuracy" and row.task.startswith(tasks)]
        n = sum(row.n for row in asked)
        right = sum(round(row.score * row.n) for row in asked)
        return (right / n, *wilson_interval(right, n)) if n else None
    if name.startswith("points"):
        gains = [row for row in of_model if row.metric == "gain_from_examples"]
        return _pooled(gains) if gains else None
    losses = [row.score for row in of_model if (row.task, row.metric) == ("validation", "loss")]
    return (losses[0], losses[0], losses[0]) if losses else None


def _pooled(rows: list[ResultRow]) -> Cell:
    """The mean over all questions, and its normal interval."""
    n = sum(row.n for row in rows)
    mean = sum(row.score * row.n for row in rows) / n
    stderr = math.sqrt(sum((row.n * (row.stderr or 0.0)) ** 2 for row in rows)) / n
    return mean, mean - 1.96 * stderr, mean + 1.96 * stderr


def _shown(name: str, cells: dict[str, Cell | None], model: str) -> str:
    cell = cells[model]
    if cell is None:
        return "-"
    if name.startswith("loss"):
        return f"{cell[0]:.3f}"
    factor = "+.1f" if name.startswith("points") else ".1f"
    unit = "" if name.startswith("points") else " %"
    low, high = 100 * cell[1], 100 * cell[2]
    score = f"{100 * cell[0]:{factor}}{unit}{_mark(cells, model, cell)}"
    return f'{score}<br><span class="unit">{low:.1f} to {high:.1f}</span>'


def _mark(cells: dict[str, Cell | None], model: str, cell: Cell) -> str:
    before = cells.get("pretrain" if model == "sft" else "sft") if model != "pretrain" else None
    if before is None:
        return ""
    if cell[1] > before[2]:
        return ' <span class="right">▲</span>'
    return ' <span class="wrong">▼</span>' if cell[2] < before[1] else ""


def _cost(data: RunData, model: str) -> str:
    """What it takes beyond the model that it began as."""
    kind, _, number = model.partition("-")
    reads = _READS.get(kind, ())
    if kind == "grpo" and data.settings.get(model, {}).get("grpo", {}).get("reward") == "model":
        reads = _READS["ppo"]
    stages = [*(f"{stage}-{number}" if number.isdigit() else stage for stage in reads), model]
    seconds = data.seconds(*stages)
    return "-" if seconds is None else duration(seconds)
