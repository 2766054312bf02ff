"""What size does: laws, plans, ladders, kinds of curves, the study of curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from talaria.commands.console import console
from talaria.config import apply_overrides, resolve
from talaria.errors import UsageError, UserError
from talaria.files import atomic_write, read_json


def fit_points(
    path: Path,
    law: str,
    columns: list[str],
    without: str | None,
    draws: int,
    seed: int,
    pictures: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Fit a scaling law to a table of runs and print it."""
    from talaria.report.picture_page import write_picture_page
    from talaria.scaling.fit import write_fit
    from talaria.scaling.fit_report import fit_summary, fit_table

    try:
        lines = [int(line) for line in without.split(",")] if without else []
    except ValueError:
        raise UsageError(f"--without {without}: give line numbers, e.g. --without 2,3,4") from None
    fit, drawn = fit_table(path, law, _column_names(columns), lines, draws, seed, pictures)
    if pictures is not None:
        write_picture_page(f"{law}: {path.name}", fit_summary(fit), drawn, pictures / f"{law}.html")
    if output is not None:
        write_fit(fit, output)
    if as_json:
        print(json.dumps(fit.to_json(), indent=1))
    else:
        Console().print(fit_summary(fit))


def print_plan(
    budget: dict[str, float | None],
    law: str,
    fit: Path | None,
    options: dict[str, Any],
    output: Path | None,
    as_json: bool,
) -> None:
    """Print what a budget gives; write the recipe where `output` names one."""
    from talaria.planning import make_plan, plan_table
    from talaria.scaling.planner import RULES, Budget, read_rule

    if law not in RULES:
        raise UsageError(f"--law {law}: unknown; known: {', '.join(RULES)}; your own goes by --fit FIT.json")
    if output is not None and output.exists():
        raise UserError(f"{output}: exists already; name another with --output, or delete it")
    plan = make_plan(read_rule(fit) if fit is not None else RULES[law], Budget(**budget), **options)
    if output is not None:
        atomic_write(output, plan.recipe)
    if as_json:
        print(json.dumps(plan.to_json(), indent=1))
    else:
        Console().print(plan_table(plan))
    if output is not None:
        console.print(f"next: talaria run {output}")


def climb_ladder(path: Path, overrides: list[str], pictures: Path | None, as_json: bool) -> None:
    """Train the rungs of a recipe and print what they predict."""
    from talaria.ladder import climb, told

    prediction = climb(path, overrides, pictures)
    print(json.dumps(prediction.to_json(), indent=1) if as_json else told(prediction))
    for warning in [] if as_json else prediction.law.warnings:
        print(f"warning: {warning}")


def print_emergence(
    path: Path, scale: str, columns: list[str], smooth: list[str], seed: int, folder: Path | None, as_json: bool
) -> None:
    """Print the kind of each task's curve over scale."""
    from talaria.report.picture_page import write_picture_page
    from talaria.scaling.emergence import judge, read_scores
    from talaria.scaling.emergence_report import pictures, verdict_table

    names = _column_names(columns)
    verdicts = judge(read_scores(path, scale, names), smooth, seed)
    shown = scale if not names else names.get("scale", "scale")
    table = verdict_table(verdicts, shown)
    if folder is not None:
        drawn = pictures(verdicts, shown, folder / "curves.png")
        write_picture_page(f"curves: {path.name}", table, drawn, folder / "curves.html")
    if as_json:
        print(json.dumps({"scale": shown, "tasks": [verdict.to_json() for verdict in verdicts]}, indent=1))
    else:
        Console().print(table)


def conduct_study(folder: Path, seeds: int | None, sizes: str | None, overrides: list[str], report: bool) -> None:
    """Train the arms of the study of curves that are not finished, report, and print what appeared."""
    from talaria.study.conduct import conduct
    from talaria.study.page import headline
    from talaria.study.settings import StudySettings

    table = apply_overrides({}, overrides)
    if seeds is not None:
        table["seeds"] = seeds
    if sizes is not None:
        try:
            table["widths"] = [int(width) for width in sizes.split(",")]
        except ValueError:
            raise UsageError(f"--sizes {sizes}: give widths, e.g. --sizes 16,32,64") from None
    page = conduct(resolve(StudySettings, table, "study"), folder, console.print, train=not report)
    for sentence in headline(read_json(page.with_name("study.json"))):
        print(sentence)
    console.print(f"the report: {page}")


def _column_names(given: list[str]) -> dict[str, str]:
    """NAME=COLUMN of --columns as a mapping."""
    pairs = [item.partition("=") for item in given]
    if any(not name or not column for name, _, column in pairs):
        raise UsageError(f"--columns {' '.join(given)}: write NAME=COLUMN, e.g. --columns params='Model Size'")
    return {name.strip(): column.strip() for name, _, column in pairs}
