"""A run folder in, report.html and model_card.md out: one offline page, no script, no outside resource.

    write_report(Path("runs/laptop"))    # -> runs/laptop/report/report.html

Whatever stages the run has are shown; a missing one is said in a sentence. All text that a run brings along (answers of
a model above all) is escaped: it is shown, never run.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

from talaria.report.card import card_html, card_markdown, duration, headline
from talaria.report.chart import Series, line_chart, number
from talaria.report.lineage import lineage_section
from talaria.report.run_data import TRAINING, RunData, read_run
from talaria.report.scores import samples_section, scores_section
from talaria.report.style import STYLE
from talaria.run import atomic_write

TITLES = {"pretrain": "Pretraining", "sft": "Fine-tuning"}


def write_report(run_folder: Path, folder: Path | None = None) -> Path:
    """Write report.html and model_card.md into `folder` (default `run_folder`/report); returns the page's path."""
    data = read_run(run_folder)
    folder = folder or run_folder / "report"
    atomic_write(folder / "model_card.md", card_markdown(data))
    page = folder / "report.html"
    atomic_write(page, render(data))
    return page


def render(data: RunData) -> str:
    """The whole page as HTML."""
    sections: list[tuple[str, str, Callable[[RunData], str]]] = [
        ("scores", "Exam", scores_section),
        ("samples", "Answers", samples_section),
        ("training", "Training", _training_section),
        ("corpus", "Corpus", _corpus_section),
        ("lineage", "Lineage", lineage_section),
        ("card", "Model card", card_html),
    ]
    contents = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in sections)
    body = "".join(f'<section><h2 id="{anchor}">{title}</h2>{make(data)}</section>' for anchor, title, make in sections)
    name = escape(data.name)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} - Talaria run</title><style>{STYLE}</style></head><body><main>"
        f'<header><h1>{name}</h1><p class="lead">{escape(headline(data))}</p>{_tiles(data)}'
        f"<nav>{contents}</nav></header>"
        f"{body}</main></body></html>\n"
    )


def _tiles(data: RunData) -> str:
    last = next((data.training[stage] for stage in reversed(TRAINING) if stage in data.training), {})
    tiles = []
    if params := last.get("params"):
        tiles.append((number(params), "parameters"))
    if "pretrain" in data.training:
        tiles.append((number(data.training["pretrain"]["tokens"]), "tokens of pretraining"))
    if flops := sum(record.get("flops", 0) for record in data.training.values()):
        tiles.append((f"{flops:.1e}", "training FLOPs"))
    if (seconds := data.seconds(*TRAINING)) is not None:
        tiles.append((duration(seconds), "training"))
    if (seconds := data.seconds(*data.manifests)) is not None:
        tiles.append((duration(seconds), "all stages"))
    for stage in TRAINING:
        losses = [
            row["validation_loss"] for row in data.metrics.get(stage, []) if row.get("validation_loss") is not None
        ]
        if losses:
            tiles.append((f"{min(losses):.3f}", f"best validation loss, {TITLES[stage].lower()}"))
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in tiles
    )
    return f'<div class="tiles">{cells}</div>' if cells else ""


def _training_section(data: RunData) -> str:
    parts = []
    for stage in dict.fromkeys([*TRAINING, *data.metrics]):
        title = TITLES.get(stage, stage)
        if not data.metrics.get(stage):
            parts.append(f'<p class="missing">{escape(title)}: this run has no measurements of it.</p>')
            continue
        parts.append(f'<h3>{escape(title)}</h3><div class="charts">{"".join(_charts(data, stage))}</div>')
        if unusual := _unusual_steps(data, stage):
            parts.append(f'<p class="note">{escape(unusual)}</p>')
    return "".join(parts)


def _charts(data: RunData, stage: str) -> list[str]:
    def series(key: str, name: str, faint: bool = False, dots: bool = False, factor: float = 1.0) -> Series:
        rows = data.metrics[stage]
        points = [(float(row["step"]), factor * float(row[key])) for row in rows if row.get(key) is not None]
        return Series(name, points, faint=faint, dots=dots)

    return [
        line_chart(
            [series("train_loss", "training", faint=True), series("validation_loss", "validation", dots=True)],
            "Loss",
            "step",
            "nats per token",
        ),
        line_chart([series("tokens_per_second", "throughput")], "Throughput", "step", "tokens/s"),
        line_chart(
            [series("mfu", "utilisation", factor=100)], "Model FLOPs utilisation", "step", "% of measured matrix peak"
        ),
        line_chart(
            [series("noise_scale", "noise scale")], "Gradient noise scale", "step", "tokens, log scale", log_y=True
        ),
        line_chart([series("learning_rate", "learning rate")], "Learning rate", "step"),
        line_chart([series("grad_norm", "norm")], "Gradient norm", "step", "before clipping, log scale", log_y=True),
    ]


def _unusual_steps(data: RunData, stage: str) -> str:
    rows = data.metrics[stage]
    skipped, spikes = sum(bool(row.get("skipped")) for row in rows), sum(bool(row.get("spike")) for row in rows)
    found = [f"{n} {name}" for n, name in ((skipped, "skipped as not finite"), (spikes, "marked as a loss spike")) if n]
    return f"Steps out of the ordinary: {', '.join(found)}." if found else ""


def _corpus_section(data: RunData) -> str:
    if data.corpus is None:
        return '<p class="missing">This run has no corpus stage; it began from finished data or weights.</p>'
    rows = _dropped(data)
    if not rows:
        return f"<p>{escape(_corpus_counts(data))}</p>"
    total = sum(count for _, count in rows)
    cells = "".join(
        f'<tr><td>{escape(reason)}</td><td class="n">{count:,}</td><td class="n">{100 * count / total:.1f} %</td></tr>'
        for reason, count in rows
    )
    return (
        f"<p>{escape(_corpus_counts(data))}</p><div class='wide'><table><thead><tr><th>reason for dropping</th>"
        f'<th class="n">documents</th><th class="n">share of dropped</th></tr></thead>'
        f"<tbody>{cells}</tbody></table></div>"
    )


def _dropped(data: RunData) -> list[tuple[str, int]]:
    """(reason, documents), most first; corpus.json may count a reason by source."""
    counts = (data.corpus or {}).get("dropped") or {}
    if not isinstance(counts, dict):
        return []
    rows = [(reason, sum(n.values()) if isinstance(n, dict) else int(n)) for reason, n in counts.items()]
    return sorted(rows, key=lambda row: -row[1])


def _corpus_counts(data: RunData) -> str:
    counts = {key: value for key, value in (data.corpus or {}).items() if isinstance(value, int | float)}
    return "; ".join(f"{key.replace('_', ' ')}: {value:,}" for key, value in counts.items()) or "No counts were kept."
