"""People's choices and what they are made from: the annotation page, choices in and out, prompts, instructions."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from talaria.commands.console import console
from talaria.config import apply_overrides, resolve
from talaria.errors import UsageError, UserError


def annotate(
    models: list[str],
    store: str | None,
    keys: Path | None,
    files: dict[str, Path | None],
    overrides: list[str],
    host: str,
    port: int,
) -> None:
    """Serve the annotation page until SIGTERM or Ctrl-C. `keys` None asks nobody for a key."""
    from talaria.serve.server import serve_annotation
    from talaria.serve.settings import AnnotateSettings, ServeSettings

    settings = resolve(AnnotateSettings, apply_overrides({}, overrides), "--set")
    limits = ServeSettings(host=host, port=port)
    serve_annotation(models, store, keys, files, settings, limits)


def import_feedback(files: list[Path], location: str, form: str, criterion: str | None, split: str | None) -> None:
    """Put files of choices into a store, and tell what was left out and why."""
    from talaria.feedback.exchange import import_choices
    from talaria.feedback.store import FeedbackStore

    store = FeedbackStore(location)
    for file in files:
        counts = import_choices(store, file, form, criterion, split)
        console.print(f"{file}: {counts.n:,} choices")
        _print_left_out(counts.left_out)


def export_feedback(output: Path, location: str, form: str) -> None:
    """Write a store's choices to a file."""
    from talaria.feedback.exchange import export_choices

    counts = export_choices(_existing_store(location).read_comparisons(), output, form)
    console.print(f"{output}: {counts.n:,} rows")
    _print_left_out(counts.left_out)


def report_feedback(location: str, held_out: list[str], seed: int, as_json: bool) -> None:
    """Print who judged what, and how far annotators agree."""
    from talaria.feedback.summary import summarise, summary_tables

    summary = summarise(_existing_store(location), held_out, seed=seed)
    if unknown := set(held_out) - {person.name for person in summary.annotators}:
        raise UsageError(f"--held-out {sorted(unknown)[0]}: no such annotator in {location}")
    if as_json:
        print(json.dumps(asdict(summary), indent=1, ensure_ascii=False))
        return
    for table in summary_tables(summary):
        Console().print(table)


def gather_prompts(paths: list[Path], output: Path, overrides: list[str]) -> None:
    """Write clean prompts of files and worlds to one file, and tell what each rule did."""
    from talaria.feedback.prompts import gather_prompts as gather
    from talaria.feedback.settings import PromptSettings

    if output.exists():
        raise UserError(f"{output}: exists already; name another with --output, or delete it")
    counts = gather(paths, output, resolve(PromptSettings, apply_overrides({}, overrides), "--set"))
    table = Table("rule", "prompts", title=f"{counts.read:,} prompts read", title_justify="left")
    for name, n in counts.dropped.items():
        table.add_row(f"dropped: {name}", f"{n:,}")
    for name, n in counts.masked.items():
        table.add_row(f"masked: {name} (places)", f"{n:,}")
    for name, n in sorted(counts.kept.items()):
        table.add_row(f"kept: {name}", f"{n:,}")
    table.add_row("of these, without a known user", f"{counts.without_user:,}")
    Console().print(table)
    console.print(f"{output}: {sum(counts.kept.values()):,} prompts of {counts.users:,} known users")


def self_instruct(
    url: str, model: str, seeds: Path, output: Path, key_variable: str | None, overrides: list[str]
) -> None:
    """Make an SFT set of seed tasks and a model behind a URL; the same command goes on where it was stopped."""
    from talaria.feedback.selfinstruct import CONVERSATIONS, Report, read_seeds
    from talaria.feedback.selfinstruct import self_instruct as make
    from talaria.feedback.settings import SelfInstructSettings
    from talaria.infer.remote import RemoteEngine

    settings = resolve(SelfInstructSettings, apply_overrides({}, overrides), "--set")
    key = None
    if key_variable is not None and not (key := os.environ.get(key_variable)):
        raise UsageError(f"--key-variable {key_variable}: is not set in the environment; export it first")
    tasks = read_seeds(seeds)
    engine = RemoteEngine(url, model, key, cache=output / "answers", n_parallel=settings.n_parallel)
    meter = engine.meter

    def cost() -> str:
        spent = (
            meter.prompt_tokens * settings.prompt_price + meter.completion_tokens * settings.completion_price
        ) / 1e6
        tokens = f"{meter.prompt_tokens:,} + {meter.completion_tokens:,} tokens"
        return f"{tokens}, {meter.cache_hits:,} answers known before" + (f", cost {spent:.4f}" if spent else "")

    def told(report: Report) -> None:
        console.print(
            f"round {report.rounds}: {report.instructions}/{settings.instructions} instructions, {report.instances} "
            f"instances, {report.requests:,} requests; {cost()}"
        )

    try:
        report, dropped = make(tasks, engine, output, settings, told)
    finally:
        engine.close()
    _print_left_out(dropped)
    console.print(f"stopped: {report.stopped}; {report.classifications} of {report.instructions} are classifications")
    console.print(f"{output / CONVERSATIONS}: {report.instances:,} conversations for sft.conversations; {cost()}")


def _existing_store(location: str) -> Any:
    from talaria.feedback.store import FeedbackStore

    if "://" not in location and not Path(location).is_file():
        raise UserError(f"{location}: no such feedback store; name one with --store")
    return FeedbackStore(location)


def _print_left_out(left_out: dict[str, int]) -> None:
    for reason, n in left_out.items():
        console.print(f"left out ({n:,}): {reason}")
