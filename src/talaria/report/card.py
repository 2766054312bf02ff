"""What a reader of the model should know, from what the run measured: the model card, as Markdown and as HTML.

A card is a list of (heading, lines), so that both forms say the same.
"""

from __future__ import annotations

from html import escape
from typing import Any

from talaria.report.chart import number
from talaria.report.run_data import NULL_MODELS, POLICIES, TRAINING, RunData

Card = list[tuple[str, list[str]]]


def headline(data: RunData) -> str:
    """One sentence: what came out of the run."""
    record = next((data.training[stage] for stage in reversed(TRAINING) if stage in data.training), {})
    size = f"{number(record['params'])}-parameter language model" if record.get("params") else "language model"
    made = []
    if "pretrain" in data.training:
        made.append(f"pretrained on {number(data.training['pretrain']['tokens'])} tokens")
    if "sft" in data.training:
        made.append("fine-tuned to answer in conversation")
    made += [f"trained further by {stage.upper()}" for stage in POLICIES if stage in data.training]
    seconds = data.seconds(*data.trained)
    time = f"; training took {duration(seconds)}" if seconds is not None else ""
    return f"A {size}{', ' + ' and '.join(made) if made else ''}{time}."


def model_card(data: RunData) -> Card:
    """Abilities, limits, data, training and licence, each line from a figure or a file of the run."""
    return [
        ("Abilities", _abilities(data)),
        ("Limits", _limits(data)),
        ("Data", _data(data)),
        ("Training", _training(data)),
        (
            "Licence",
            [
                "The code that made this model is Apache-2.0. The weights carry the terms of their training text and "
                "of any imported weights; these are not checked."
            ],
        ),
    ]


def card_markdown(data: RunData) -> str:
    """The card as model_card.md."""
    parts = [f"# {data.name}", headline(data)]
    for heading, lines in model_card(data):
        parts += [f"## {heading}", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def card_html(data: RunData) -> str:
    """The card as a section of the report."""
    parts = []
    for heading, lines in model_card(data):
        entries = "".join(f"<li>{escape(line)}</li>" for line in lines)
        parts.append(f"<h3>{escape(heading)}</h3><ul>{entries}</ul>")
    return "".join(parts)


def dropped(corpus: dict[str, Any]) -> list[tuple[str, int]]:
    """(reason, documents) of corpus.json, most first."""
    return sorted((corpus.get("dropped") or {}).items(), key=lambda row: -row[1])


def corpus_sentence(corpus: dict[str, Any]) -> str:
    """How much text was kept and dropped."""
    text = f" ({number(corpus['characters'])} characters)" if corpus.get("characters") else ""
    n_dropped = sum(count for _, count in dropped(corpus))
    n_sources = len(corpus.get("sources") or {})
    sources = f" from {n_sources} {'source' if n_sources == 1 else 'sources'}" if n_sources else ""
    return f"{corpus.get('documents', 0):,} documents{text} kept{sources}, {n_dropped:,} dropped."


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _abilities(data: RunData) -> list[str]:
    product = data.models[-1] if data.models else None
    lines = []
    for row in data.results:
        if row.model != product or row.metric != "accuracy":
            continue
        low, high = row.interval() or (row.score, row.score)
        nulls = [
            f"{other.model} {100 * other.score:.0f} %"
            for other in data.results
            if other.model in NULL_MODELS and other.task == row.task and other.metric == row.metric
        ]
        beside = f"; {', '.join(nulls)}" if nulls else ""
        lines.append(
            f"{row.task}: {100 * row.score:.1f} % right (95 % interval {100 * low:.1f} to {100 * high:.1f}, "
            f"{row.n} questions{beside})"
        )
    return lines or ["Not measured: this run has no evaluation."]


def _limits(data: RunData) -> list[str]:
    lines = ["Measured on the tasks above and on nothing else; expect no more of it than they show."]
    if "world" in data.manifests:
        lines.append(
            "Its facts are those of a small invented world, so these figures are world only and say nothing about "
            "knowledge of the real one."
        )
    seeds = {row.seed for row in data.results if row.seed is not None}
    if data.results and len(seeds) <= 1:
        lines.append("One seed: the intervals cover the choice of questions, not the luck of a training run.")
    lines.append("It can state false things fluently. Do not use it where a wrong answer does harm.")
    return lines


def _data(data: RunData) -> list[str]:
    lines = []
    if "world" in data.manifests:
        lines.append("Pages and conversations of the embedded invented world, made by code from a seed.")
    if data.corpus is not None:
        lines.append(corpus_sentence(data.corpus))
    outside = [name for name in data.manifests.get("corpus", {}).get("inputs", {}) if name.startswith("/")]
    lines += [f"read from {name}" for name in outside]
    return lines or ["No corpus stage in this run."]


def _training(data: RunData) -> list[str]:
    lines = []
    for stage in data.trained:
        record = data.training[stage]
        seconds = data.seconds(stage)
        time = f", {duration(seconds)}" if seconds is not None else ""
        counts = [
            f"{number(record[key])} {name}"
            for key, name in (("params", "parameters"), ("steps", "steps"), ("tokens", "tokens"), ("flops", "FLOPs"))
            if record.get(key) is not None
        ]
        lines.append(f"{stage}: {', '.join(counts)}{time}")
    return lines or ["No training stage in this run."]
