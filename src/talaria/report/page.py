"""A run folder in, report.html and model_card.md out: one offline page, no script, no outside resource.

    write_report(Path("runs/laptop"))    # -> runs/laptop/report/report.html

Whatever stages the run has are shown; a missing one is said in a sentence. All text that a run brings along (answers of
a model above all) is escaped: it is shown, never run.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

from talaria.files import atomic_write
from talaria.report.alignment import alignment_section
from talaria.report.card import card_html, card_markdown, corpus_sentence, dropped, duration, headline
from talaria.report.chart import Series, line_chart, number, with_median
from talaria.report.ladder import ladder_section
from talaria.report.lineage import lineage_section
from talaria.report.run_data import TRAINING, RunData, is_policy, read_run, title_of
from talaria.report.scores import samples_section, scores_section
from talaria.report.stages import stages_section
from talaria.report.style import STYLE


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
        ("stages", "What each stage gives and costs", stages_section),
        ("alignment", "Alignment", alignment_section),
        ("samples", "Answers", samples_section),
        ("training", "Training", _training_section),
        ("corpus", "Corpus", _corpus_section),
        ("lineage", "Lineage", lineage_section),
        ("card", "Model card", card_html),
    ]
    if data.ladder is not None:
        sections.insert(3, ("ladder", "Ladder", ladder_section))
    made = [(anchor, title, text) for anchor, title, make in sections if (text := make(data))]
    contents = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in made)
    body = "".join(f'<section><h2 id="{anchor}">{title}</h2>{text}</section>' for anchor, title, text in made)
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
    if flops := sum(data.training[stage].get("flops") or 0 for stage in data.trained):
        tiles.append((f"{flops:.1e}", "training FLOPs"))
    if (seconds := data.seconds(*data.trained)) is not None:
        tiles.append((duration(seconds), "training"))
    if (seconds := data.seconds(*data.manifests)) is not None:
        tiles.append((duration(seconds), "all stages"))
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in tiles
    )
    return f'<div class="tiles">{cells}</div>' if cells else ""


def _training_section(data: RunData) -> str:
    parts = []
    for stage in dict.fromkeys([*TRAINING, *data.metrics]):
        if is_policy(stage) or stage.startswith("reward"):
            continue  # their curves stand with the rest of alignment
        if data.ladder is not None and stage.startswith("rung-"):
            continue  # the ladder's section shows the rungs together
        title = title_of(stage, data)
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

    # A band of the mean training loss is no statement about the held-out loss, which is predicted once, for the end.
    band = [row for row in data.metrics[stage] if "stretch_loss" in row]
    ends = [row for row in data.metrics[stage] if "held_out_loss" in row]
    bounds = ("expected_low", "expected_high")
    held_out = [(float(row["step"]), float(row[bound])) for row in ends[-1:] for bound in bounds]
    low, high = ([(float(row["step"]), float(row[bound])) for row in band] for bound in bounds)
    return [
        line_chart(
            [
                series("train_loss", "training", faint=True),
                series("validation_loss", "validation", dots=True),
                Series("training, predicted low", low),
                Series("training, predicted high", high),
                Series("validation, predicted", held_out, dots=True),
            ],
            "Loss",
            "step",
            "nats per token",
        ),
        line_chart(with_median(series("tokens_per_second", "throughput")), "Throughput", "step", "tokens/s"),
        line_chart(
            with_median(series("mfu", "utilisation", factor=100)),
            "Model FLOPs utilisation",
            "step",
            "% of measured matrix peak",
        ),
        line_chart(
            with_median(series("noise_scale", "noise scale")),
            "Gradient noise scale",
            "step",
            "tokens, log scale",
            log_y=True,
        ),
        line_chart([series("learning_rate", "learning rate")], "Learning rate", "step"),
        line_chart(
            with_median(series("grad_norm", "norm")), "Gradient norm", "step", "before clipping, log scale", log_y=True
        ),
    ]


def _unusual_steps(data: RunData, stage: str) -> str:
    rows = data.metrics[stage]
    skipped, spikes = sum(bool(row.get("skipped")) for row in rows), sum(bool(row.get("spike")) for row in rows)
    found = [f"{n} {name}" for n, name in ((skipped, "skipped as not finite"), (spikes, "marked as a loss spike")) if n]
    return f"Steps out of the ordinary: {', '.join(found)}." if found else ""


def _corpus_section(data: RunData) -> str:
    if data.corpus is None:
        return '<p class="missing">This run has no corpus stage; it began from finished data or weights.</p>'
    rows = dropped(data.corpus)
    total = data.corpus.get("documents", 0) + sum(count for _, count in rows)
    parts = [f"<p>{escape(corpus_sentence(data.corpus))}</p>"]
    if rows:
        cells = "".join(
            f'<tr><td>{escape(reason)}</td><td class="n">{count:,}</td>'
            f'<td class="n">{100 * count / total:.1f} %</td></tr>'
            for reason, count in rows
        )
        parts.append(
            '<div class="wide"><table><thead><tr><th>dropped because</th><th class="n">documents</th>'
            f'<th class="n">share of all read</th></tr></thead><tbody>{cells}</tbody></table></div>'
        )
    if changes := [f"{count:,} {change}" for change, count in (data.corpus.get("changes") or {}).items() if count]:
        parts.append(f'<p class="note">In the documents read: {escape(", ".join(changes))}.</p>')
    return "".join(parts)
