"""The record of a study in, tables that a person reads out; the page and the summary show the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from talaria.report.chart import number
from talaria.study.findings import KINDS_SOUGHT
from talaria.study.prerequisites import MASTERED


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; `note` says how they came about."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def tables_of(record: Mapping[str, Any]) -> list[Table]:
    """Every table of the record that has a row."""
    made = [
        _kinds(record),
        *(_curves(record, scale) for scale in ("params", "tokens")),
        _powers(record),
        _worked(record),
        _between(
            record["worked"]["trained"],
            "Trained on worked steps or not",
            "Asked directly: the whole corpus less the one without steps, averaged over the larger half of the sizes.",
        ),
        _between(
            record["code"],
            "With code or without",
            "The whole corpus less the one without code, at equal tokens, averaged over the larger half of the sizes.",
        ),
        *(_stopped(one) for one in record["stopped"]),
        _edges(record),
        _compositions(record),
        _loss(record),
    ]
    return [table for table in made if table.rows]


def spread(one: Mapping[str, Any] | None, digits: int = 2) -> str:
    """`0.31 (0.25 to 0.37)`; a mean alone where one seed gives no interval."""
    if one is None:
        return ""
    if one["low"] is None:
        return f"{one['mean']:.{digits}f}"
    return f"{one['mean']:.{digits}f} ({one['low']:.{digits}f} to {one['high']:.{digits}f})"


def appeared(record: Mapping[str, Any], scale: str, kind: str) -> list[str]:
    """Questions whose curve over `scale` is of this kind; what rises to chance and no further is none."""
    rises = kind in ("steady", "sudden")
    found = record["curves"][scale].items()
    return [name for name, one in found if one["kind"] == kind and (one["beats_chance"] or not rises)]


def at_chance(record: Mapping[str, Any], scale: str) -> list[str]:
    """Questions that rise, but end no better than a guess."""
    found = record["curves"][scale].items()
    return [name for name, one in found if one["kind"] in ("steady", "sudden") and not one["beats_chance"]]


def _kinds(record: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = []
    for kind in (*KINDS_SOUGHT, "flat", "undetermined"):
        found = [", ".join(appeared(record, scale, kind)) or "none" for scale in ("params", "tokens")]
        jumps = [name for name, one in record["curves"]["params"].items() if one["exact_curve"] == kind]
        rows.append((kind, ", ".join(jumps) or "none", *found))
    rows.append(
        ("rises to chance", "", *(", ".join(at_chance(record, scale)) or "none" for scale in ("params", "tokens")))
    )
    note = (
        "What each question's curve is: of exact match by itself, over size, as if that told of the model; and the "
        "verdict of all metrics, over size at the last checkpoint, and over the training of the largest size."
    )
    return Table(
        "Which curves appeared", note, ("kind", "exact match, size", "verdict, size", "verdict, training"), rows
    )


def _curves(record: Mapping[str, Any], scale: str) -> Table:
    rows = []
    for name, one in record["curves"][scale].items():
        steps = one["looks_like_steps"]
        like = f"{steps['n']:g} ({steps['low']:g} to {steps['high']:g})" if steps and steps["p"] > 0.05 else ""
        metrics = ", ".join(f"{metric.replace('_', ' ')}: {kind}" for metric, kind in one["by_metric"].items())
        rows.append((name, one["exact_alone"], one["kind"], f"{one['probability']:.2f}", one["reason"], metrics, like))
    over = "size, at the last checkpoint" if scale == "params" else "tokens, at the largest size"
    note = f"Over {over}; the seeds' items pooled. The last column reads exact match as p^n (80 %), where that fits."
    columns = ("question", "by exact match alone", "verdict", "probability", "why", "each metric", "looks like n steps")
    return Table(f"Every question over {'size' if scale == 'params' else 'training'}", note, columns, rows)


def _powers(record: Mapping[str, Any]) -> Table:
    rows = [
        (str(one["k"]), spread(one["n"]), spread(one["misses"]["worked"]), spread(one["misses"]["direct"]))
        for one in record["steps"]
    ]
    note = (
        "n of exact = p^n, p being the share of right steps behind right ones of a worked answer, over the sizes; and "
        "by how much the k-th power of the single step's score misses the exact match, averaged over the sizes."
    )
    return Table("k steps as p^n", note, ("k", "n", "worked less p^k", "direct less p^k"), rows)


def _worked(record: Mapping[str, Any]) -> Table:
    rows = [
        (task, spread(one["direct"]), spread(one["worked"]), spread(one["difference"]))
        for task, one in record["worked"]["asked"].items()
    ]
    note = "Exact match of the largest model, the same questions asked directly and with steps."
    return Table("Asked directly or with worked steps", note, ("task", "direct", "worked", "difference"), rows)


def _between(gaps: Mapping[str, Any], title: str, note: str) -> Table:
    rows = [
        (name, spread(one["exact_match"], 3), _sure(one["exact_match"]), spread(one["answer_log_prob"]))
        for name, one in gaps.items()
    ]
    note += f" Of {len(rows)} intervals of 95 % one or so lies off zero by chance."
    return Table(title, note, ("question", "exact match", "", "log-probability, nats a token"), rows)


def _sure(one: Mapping[str, Any]) -> str:
    if one["low"] is None:
        return "one seed"
    return "more" if one["low"] > 0 else "less" if one["high"] < 0 else "not told apart"


def _stopped(one: Mapping[str, Any]) -> Table:
    rows = [(name, spread(gap, 3), _sure(gap)) for name, gap in one["differences"].items()]
    metric = one["metric"].replace("_", " ")
    note = (
        f"{metric.capitalize()} of the large model less that of the small one, over {one['pairs']} pairs of sizes two "
        f"rungs apart. By then the large one has spent {spread(one['compute'])} times the small one's compute."
    )
    title = f"A large model stopped early at {one['at']}: {metric}"
    return Table(title, note, ("question", "large less small", ""), rows)


def _edges(record: Mapping[str, Any]) -> Table:
    rows = [
        (
            edge["earlier"],
            edge["later"],
            "yes" if edge["is_declared"] else "",
            f"{edge['exceptions']} of {edge['witnesses']}",
            str(edge["alone"]),
        )
        for edge in record["edges"]
    ]
    note = (
        f"Mastered is an exact match of {MASTERED} or more. Each line: the later question was mastered without the "
        "earlier one at so few of its checkpoints, and the earlier one without the later at so many. Lines that follow "
        "from two others are left out."
    )
    columns = ("first", "then", "made of it", "then without first", "first without then")
    return Table("What was mastered before what", note, columns, rows)


def _compositions(record: Mapping[str, Any]) -> Table:
    def size(value: int | None) -> str:
        return "nowhere" if value is None else number(value)

    rows = [
        (
            one["question"],
            spread(one["bias"]),
            f"{one['rms']:.3f}",
            "" if one["rms_by_loss"] is None else f"{one['rms_by_loss']:.3f}",
            size(one["predicted_at"]),
            size(one["reached_at"]),
        )
        for one in record["compositions"]
    ]
    note = (
        "Exact match beside the product of the scores of what the question is made of, over all checkpoints, nothing "
        "fitted; beside a cubic in the held-out loss, fitted on the other seeds. And the first size at which the "
        f"product, and the score, reach {MASTERED}."
    )
    columns = ("question", "score less product", "error of product", "error of loss", "product says", "reached at")
    return Table("Do prerequisites tell when a task appears?", note, columns, rows)


def _loss(record: Mapping[str, Any]) -> Table:
    rows = []
    for name, metrics in record["loss"].items():
        exact, smooth = metrics["exact_match"], metrics["answer_log_prob"]
        told = ["" if one["explained"] is None else f"{100 * one['explained']:.0f} %" for one in (exact, smooth)]
        rows.append((name, told[0], f"{exact['deviation']:.3f}", spread(exact["slope"], 3), told[1]))
    note = (
        "A cubic of the score in the held-out loss, over all checkpoints, sizes and seeds of the whole corpus. The "
        "slope is of its residuals per doubling of parameters: off zero, size tells something that the loss does not."
    )
    columns = ("question", "explained, exact match", "residual", "slope per doubling", "explained, log-probability")
    return Table("Pretraining loss against scores", note, columns, rows)
