"""What the command line does besides running stages: recipes for own text, checks, models in and out, talking, serving.
Rooms are imported where they are used, so that printing a recipe needs no torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from talaria.config import apply_overrides, resolve, to_toml
from talaria.errors import UsageError, UserError
from talaria.files import atomic_write, read_json
from talaria.recipe import read_recipe, run_path
from talaria.run import finished_stages
from talaria.verify import unchecked, verify

console = Console(stderr=True, highlight=False, soft_wrap=True)  # a path can be copied whole


def init_recipe(folder: Path, output: Path | None, minutes: float) -> None:
    """Write a recipe for the texts below `folder`, sized so that a whole run takes about `minutes` here."""
    from talaria.corpus.files import find_files
    from talaria.train.sizing import OPTIMIZER, REPLAY_SHARE, plan_own_text

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give a folder that holds your text files")
    if not 0 < minutes < math.inf:
        raise UsageError(f"--minutes {minutes}: give a number above 0, e.g. --minutes 15")
    output = output or Path(f"{folder.resolve().name}.toml")
    if output.exists():
        raise UserError(f"{output}: exists already; name another with --output, or delete it")
    for reason, count in Counter(find_files([str(folder)])[1].values()).items():
        console.print(f"left out ({count}): {reason}")
    console.print(f"looking at {folder} and timing this machine ...")
    plan = plan_own_text(folder, minutes)
    paths = json.dumps(str(folder.resolve()), ensure_ascii=False)
    optimizer = ", ".join(
        f"{name} = {json.dumps(value)}" for name, value in OPTIMIZER.model_dump(exclude_unset=True).items()
    )
    atomic_write(
        output,
        f"""\
# Made by `talaria init {folder}`.
# {plan.params:,} parameters, {plan.tokens:,} training tokens ({plan.epochs:.1f} epochs).
# Predicted on this machine: {plan.seconds / 60:.1f} minutes.

[corpus]
paths = [{paths}]

[tokenizer]
vocab_size = {plan.vocab_size}

[model]
depth = {plan.depth}
context = {plan.context}

[pretrain]
tokens = {plan.tokens}
batch_tokens = {plan.batch_tokens}
validate_every_steps = 500
optimizer = {{ {optimizer} }}

# Conversations made from your own text teach the model to take turns: it continues what you begin.
[conversations]
continuations = {plan.continuations}

[sft]
epochs = 1
batch_tokens = {plan.batch_tokens}
replay_share = {REPLAY_SHARE}
optimizer = {{ learning_rate = 5e-4, weight_decay = 0.0 }}

[eval]
""",
    )
    console.print(f"{output}: {plan.params:,} parameters, predicted {plan.seconds / 60:.1f} minutes")
    console.print(f"next: talaria run {output}")


def print_doctor(path: Path | None, overrides: list[str]) -> None:
    """Print what this machine is, and what it can train: of a recipe, or a table over depths."""
    from talaria.train.doctor import estimate_data_tokens, examine

    if path is None:
        Console().print(examine())
        return
    recipe = read_recipe(path, overrides)
    entities = recipe.world.entities if recipe.world else None
    data_tokens = estimate_data_tokens(run_path(recipe), entities, recipe.corpus.paths if recipe.corpus else [])
    Console().print(examine(recipe.model, recipe.pretrain, recipe.tokenizer, recipe.sft, data_tokens))


def print_recipe(path: Path, overrides: list[str]) -> None:
    """Print the resolved recipe to standard output, as TOML."""
    print(to_toml(read_recipe(path, overrides)), end="")


def verify_run(run_folder: Path) -> None:
    """Re-hash a run; UserError if anything changed."""
    problems = verify(run_folder)
    for problem in problems:
        print(problem)
    if problems:
        raise UserError(
            f"{run_folder}: {len(problems)} problem(s); put back what changed, or delete the stages named above "
            "and run again"
        )
    names = ", ".join(folder.name for folder in finished_stages(run_folder))
    print(f"{run_folder}: every hash holds, from raw text to results ({names})")
    for name in unchecked(run_folder):
        print(f"not checked, since it is not on this machine: {name}")


def compare_runs(first: Path, second: Path) -> None:
    """Print two runs side by side."""
    from talaria.report.compare import compare_runs as compare

    for run_folder in (first, second):
        finished_stages(run_folder)  # refuses a folder that is no run
    Console().print(compare(first, second))


def import_model(source: Path, target: Path) -> None:
    """Read a Hugging Face folder or .gguf file and write it as a model folder."""
    from talaria.files import atomic_folder
    from talaria.model.checkpoint import load_model, save_model

    if target.exists():
        raise UserError(f"{target}: exists already; choose another folder or delete it")
    model, tokenizer = load_model(source)
    with atomic_folder(target) as folder:
        save_model(model, tokenizer, folder)
    console.print(f"{target}: {model.shape.n_params():,} parameters; talk to it: talaria chat {target}")


def export_model(path: Path, to: str, output: Path, type: str | None) -> None:
    """Write a model as a Hugging Face folder or as one .gguf file, for other engines."""
    from talaria.files import atomic_folder
    from talaria.infer.load import find_model
    from talaria.model.checkpoint import export_huggingface, load_model
    from talaria.model.export_gguf import TYPES, export_gguf
    from talaria.model.quantized_folder import is_quantized

    if to not in ("huggingface", "gguf"):
        raise UsageError(f"--to {to}: unknown; choose huggingface or gguf")
    if type is not None and (to != "gguf" or type not in TYPES):
        raise UsageError(f"--type {type}: choose {', '.join(TYPES)}, with --to gguf; a folder keeps fp32")
    if to == "gguf" and output.suffix != ".gguf":
        raise UsageError(f"--output {output}: name a file that ends in .gguf")
    if output.exists():
        raise UserError(f"{output}: exists already; choose another name or delete it")
    found = find_model(path)
    if is_quantized(found):
        raise UserError(f"{found}: is quantized for our own engine; export the model that it was made from")
    model, tokenizer = load_model(found)
    try:
        if to == "gguf":
            export_gguf(model, tokenizer, output, type or "f32")
        else:
            with atomic_folder(output) as folder:
                export_huggingface(model, tokenizer, folder)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    n_bytes = sum(file.stat().st_size for file in ([output] if output.is_file() else output.iterdir()))
    console.print(f"{output}: {model.shape.n_params():,} parameters, {n_bytes:,} bytes")


def quantize_model(path: Path, to: str, text: Path | None, n_tokens: int, output: Path | None) -> None:
    """Print what quantizing a model saves and costs; write the quantized model where `output` is given."""
    from talaria.eval.fidelity import batches_of_shards, batches_of_text, compare_models, fidelity_table
    from talaria.files import atomic_folder
    from talaria.infer.load import load
    from talaria.model.compiled import can_compile, compile_transformer
    from talaria.model.quantized import QuantizedTransformer, int8_instead, weight_bytes
    from talaria.model.quantized_folder import save_quantized

    if output is not None and output.exists():
        raise UserError(f"{output}: exists already; choose another folder or delete it")
    after = load(path, quantize=to, compiled=False)
    before, tokenizer, quantized = load(path, compiled=False), after.tokenizer, after.trunk
    assert isinstance(quantized, QuantizedTransformer)
    window = min(after.context, 1024)
    if text is not None:
        batches = batches_of_text(text, tokenizer, window, n_tokens)
    else:
        beside = [place / "tokenizer" / "shards" for place in (path, *path.resolve().parents[:2])]
        shards = next((place for place in beside if place.is_dir()), None)
        if shards is None:
            raise UserError(f"{path}: no held-out text of a run beside it; give one with --text FILE")
        batches = batches_of_shards(shards, tokenizer, window, n_tokens)
    # Measured is what answers: the compiled model where there is one.
    answers = compile_transformer(quantized) if can_compile(quantized.shape) else quantized
    fidelity = compare_models(before.trunk, answers, batches)
    Console().print(fidelity_table(fidelity, weight_bytes(before.trunk), weight_bytes(quantized), to))
    wide = int8_instead(quantized)
    if wide:
        console.print(f"int8 instead, for INT4 takes rows of a multiple of 32 only: {', '.join(wide)}")
    if output is not None:
        with atomic_folder(output) as folder:
            save_quantized(quantized, tokenizer, folder)
        console.print(f"{output}: talk to it: talaria chat {output}")


def bench(path: Path | None, quantize: str | None, repeats: int, as_json: bool) -> None:
    """Print how fast a model reads and writes on this machine; without a path, an untrained one of depth 8."""
    from talaria.infer.engine import Engine
    from talaria.infer.load import load
    from talaria.infer.rates import measure_rates, rates_table
    from talaria.model.compiled import can_compile, compile_transformer
    from talaria.model.quantized import check_scheme
    from talaria.model.quantized import quantize as quantize_weights
    from talaria.model.shape import shape_from_depth
    from talaria.model.transformer import Transformer
    from talaria.tokens.settings import TokenizerSettings
    from talaria.tokens.tokenizer import Tokenizer

    if path is not None:
        engine = load(path, quantize)
    else:
        tokenizer = Tokenizer.train(["none"], TokenizerSettings(vocab_size=512))
        model = Transformer(shape_from_depth(8, 8192, context=1024)).eval()
        model = model if quantize is None else quantize_weights(model, check_scheme(quantize))
        engine = Engine(compile_transformer(model) if can_compile(model.shape) else model, tokenizer)
    rates = measure_rates(engine, repeats)
    if as_json:
        print(json.dumps(asdict(rates), indent=1))
    else:
        Console().print(rates_table(rates))


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
    from talaria.scaling.fit import write_fit
    from talaria.scaling.fit_report import fit_summary, fit_table

    try:
        lines = [int(line) for line in without.split(",")] if without else []
    except ValueError:
        raise UsageError(f"--without {without}: give line numbers, e.g. --without 2,3,4") from None
    fit = fit_table(path, law, _column_names(columns), lines, draws, seed, pictures)
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
    from talaria.scaling.emergence import judge, read_scores
    from talaria.scaling.emergence_report import pictures, verdict_table

    names = _column_names(columns)
    verdicts = judge(read_scores(path, scale, names), smooth, seed)
    shown = scale if not names else names.get("scale", "scale")
    if folder is not None:
        pictures(verdicts, shown, folder / "curves.png")
    if as_json:
        print(json.dumps({"scale": shown, "tasks": [verdict.to_json() for verdict in verdicts]}, indent=1))
    else:
        Console().print(verdict_table(verdicts, shown))


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


def chat(path: Path, system: str | None, history: bool, **sampling: Any) -> None:
    """Talk to a model in the terminal."""
    from talaria.infer.line_editing import history_file
    from talaria.infer.load import load
    from talaria.infer.terminal import Continuation, run_terminal_chat

    engine = load(path)
    chats = engine.tokenizer.chat_template is not None
    if not chats:
        console.print("this model has no chat template: it goes on from what you type")
    run_terminal_chat(
        engine if chats else Continuation(engine),
        system,
        path.resolve().name,
        history=history_file() if history else None,
        **sampling,
    )


def serve(models: list[str], keys: Path | None, overrides: list[str]) -> None:
    """Serve models, each a path or NAME=PATH, until SIGTERM or Ctrl-C. `keys` None asks nobody for a key."""
    from talaria.serve.server import serve_models
    from talaria.serve.settings import ServeSettings

    serve_models(models, keys, resolve(ServeSettings, apply_overrides({}, overrides), "--set"))


def change_keys(path: Path, add: str | None = None, revoke: str | None = None) -> None:
    """Make a key (printed to stdout alone, so that a command can keep it) or make one worthless; without, list all."""
    from talaria.serve.keys import make_key, read_keys, revoke_key

    if add is not None:
        key = make_key(path, add)
        console.print(f"shown only now; {path} keeps its hash:")
        print(key)
    elif revoke is not None:
        revoke_key(path, revoke)
        console.print(f"{revoke} is revoked; a running server refuses it from now on")
    else:
        for known in read_keys(path):
            print(f"{known.created_at}  {known.name}")


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


def _existing_store(location: str) -> Any:
    from talaria.feedback.store import FeedbackStore

    if "://" not in location and not Path(location).is_file():
        raise UserError(f"{location}: no such feedback store; name one with --store")
    return FeedbackStore(location)


def _print_left_out(left_out: dict[str, int]) -> None:
    for reason, n in left_out.items():
        console.print(f"left out ({n:,}): {reason}")


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
    import os

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
