"""The command line. One lazily imported line per command, so that `talaria --help` answers at once."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from talaria.errors import UsageError, UserError

app = typer.Typer(
    name="talaria",
    help="Raw text to an aligned, served, measured assistant in one verified run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

keys_app = typer.Typer(help="Keys of the served API: add, list, revoke.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(keys_app, name="keys")

feedback_app = typer.Typer(
    help="People's choices: import, export, report.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(feedback_app, name="feedback")

RecipeArgument = Annotated[Path, typer.Argument(help="A recipe: a TOML file.", metavar="RECIPE")]
Overrides = Annotated[list[str] | None, typer.Argument(help="table.key=value, e.g. run.name=mine", metavar="KEY=VALUE")]
RunArgument = Annotated[Path, typer.Argument(help="A run folder, e.g. runs/laptop.", metavar="RUN")]
Force = Annotated[bool, typer.Option("--force", help="Run this stage again even if its result is current.")]

KeysFile = Annotated[Path, typer.Option("--keys", help="File with the hashes of keys.", metavar="FILE")]
KeyName = Annotated[str, typer.Argument(help="Whom the key is for.", metavar="NAME")]
DEFAULT_KEYS = Path("talaria-keys.json")
StoreOption = Annotated[str, typer.Option(help="SQLite file, or database URL.", metavar="STORE")]
FormOption = Annotated[str, typer.Option("--form", help="hh, oasst, dpo or jsonl (our own).")]
Dtype = Annotated[str, typer.Option(help="On a GPU: float32, or bfloat16 for half the memory.")]
DEFAULT_STORE = "talaria-feedback.db"


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A folder of your own text files.", metavar="FOLDER")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the recipe.")] = None,
    minutes: Annotated[float, typer.Option(help="Time the whole run may take on this machine.")] = 15.0,
) -> None:
    """Write a recipe for a folder of your own text, sized for this machine and a time."""
    from talaria.commands.recipes import init_recipe

    init_recipe(folder, output, minutes)


@app.command()
def run(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Run every stage of a recipe; what is current is kept, what was interrupted resumes."""
    _run_until(None, recipe, overrides, force=False)


@app.command()
def corpus(recipe: RecipeArgument, overrides: Overrides = None, force: Force = False) -> None:
    """Raw files to clean documents."""
    _run_until("corpus", recipe, overrides, force)


@app.command()
def tokenizer(recipe: RecipeArgument, overrides: Overrides = None, force: Force = False) -> None:
    """Documents to a tokenizer and token shards."""
    _run_until("tokenizer", recipe, overrides, force)


@app.command()
def pretrain(recipe: RecipeArgument, overrides: Overrides = None, force: Force = False) -> None:
    """Token shards to a language model."""
    _run_until("pretrain", recipe, overrides, force)


@app.command()
def sft(recipe: RecipeArgument, overrides: Overrides = None, force: Force = False) -> None:
    """Fine-tune a model on conversations."""
    _run_until("sft", recipe, overrides, force)


@app.command()
def comparisons(recipe: RecipeArgument, overrides: Overrides = None, force: Force = False) -> None:
    """Answers of the fine-tuned model, compared by simulated labelers."""
    _run_until("comparisons", recipe, overrides, force)


@app.command()
def reward(recipe: RecipeArgument, overrides: Overrides = None, force: Force = False) -> None:
    """Comparisons to a reward model."""
    _run_until("reward", recipe, overrides, force)


@app.command()
def dpo(recipe: RecipeArgument, overrides: Overrides = None, force: Force = False) -> None:
    """Improve the model by comparisons themselves."""
    _run_until("dpo", recipe, overrides, force)


@app.command()
def grpo(recipe: RecipeArgument, overrides: Overrides = None, force: Force = False) -> None:
    """Improve the model by answers judged against each other."""
    _run_until("grpo", recipe, overrides, force)


@app.command()
def ppo(recipe: RecipeArgument, overrides: Overrides = None, force: Force = False) -> None:
    """Improve the model against the reward model."""
    _run_until("ppo", recipe, overrides, force)


@app.command()
def rounds(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Round after round: collect comparisons with the newest policy, retrain the reward model, improve the policy."""
    _run_until("rounds", recipe, overrides, force=False)


@app.command("eval")
def evaluate(recipe: RecipeArgument, overrides: Overrides = None, force: Force = False) -> None:
    """Measure the models of a run."""
    _run_until("eval", recipe, overrides, force)


@app.command()
def chat(
    path: Annotated[Path, typer.Argument(help="A run, a checkpoint, a Hugging Face folder or a .gguf file.")],
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.95,
    max_tokens: Annotated[int, typer.Option(min=1)] = 256,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answers.")] = None,
    history: Annotated[bool, typer.Option(help="Keep what is typed, for the up key of the next chat.")] = True,
    dtype: Dtype = "float32",
) -> None:
    """Talk to a model in the terminal; /help lists what can be typed."""
    from talaria.commands.models import chat as start_chat

    start_chat(path, system, history, dtype, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="A Hugging Face folder or a .gguf file.", metavar="MODEL")],
    target: Annotated[Path, typer.Argument(help="The folder to write.", metavar="FOLDER")],
) -> None:
    """Turn a pretrained model into a model folder that every command takes."""
    from talaria.commands.models import import_model

    import_model(source, target)


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="A run, a stage, a checkpoint, a Hugging Face folder or a .gguf file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder or .gguf file to write.")],
    to: Annotated[str, typer.Option(help="huggingface (transformers, vLLM) or gguf (llama.cpp).")] = "huggingface",
    type: Annotated[str | None, typer.Option(help="Of a gguf's matrices: f32 (default), f16 or q8_0.")] = None,
) -> None:
    """Write a model, its tokenizer and chat template for other engines."""
    from talaria.commands.models import export_model

    export_model(path, to, output, type)


@app.command()
def quantize(
    path: Annotated[Path, typer.Argument(help="A run, a stage, a Hugging Face folder or a .gguf file.")],
    to: Annotated[str, typer.Option(help="int4 or int8.")] = "int4",
    text: Annotated[Path | None, typer.Option(help="Held-out text; else the run's own is taken.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens of it to score.")] = 16384,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write the small model to.")] = None,
) -> None:
    """What weights of 8 or 4 bits save and cost: bytes, held-out loss and agreement before and after."""
    from talaria.commands.models import quantize_model

    quantize_model(path, to, text, tokens, output)


@app.command()
def bench(
    path: Annotated[Path | None, typer.Argument(help="A model; else an untrained one.", metavar="[PATH]")] = None,
    quantize: Annotated[str | None, typer.Option(help="Round the weights first: int4 or int8.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each rate is measured.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    dtype: Dtype = "float32",
) -> None:
    """Prefill and decode rates of a model on this machine."""
    from talaria.commands.models import bench as measure

    measure(path, quantize, dtype, repeats, as_json)


@app.command()
def fit(
    points: Annotated[Path, typer.Argument(help="A CSV of runs: params, tokens, loss.", metavar="POINTS.csv")],
    law: Annotated[str, typer.Option(help="kaplan, chinchilla, isoflop, envelope, repeated or broken.")] = "chinchilla",
    columns: Annotated[
        list[str] | None,
        typer.Option(help="A column of another name, e.g. params='Model Size'.", metavar="NAME=COLUMN"),
    ] = None,
    without: Annotated[str | None, typer.Option(help="Lines to leave out, e.g. 2,3,4.", metavar="LINES")] = None,
    draws: Annotated[int, typer.Option(help="Bootstrap draws.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    plot: Annotated[
        Path | None, typer.Option(help="A folder for pictures and a page of them.", metavar="FOLDER")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A JSON file for talaria plan --fit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Fit a scaling law to a table of runs: coefficients, intervals, and what the points cannot carry."""
    from talaria.commands.scaling import fit_points

    fit_points(points, law, columns or [], without, draws, seed, plot, output, as_json)


@app.command()
def plan(
    flops: Annotated[float | None, typer.Option(help="Training compute, e.g. 1e18.")] = None,
    hours: Annotated[float | None, typer.Option(help="Time for training, on --device.")] = None,
    money: Annotated[float | None, typer.Option(help="What training may cost, with --price.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Text at hand; short text is repeated.")] = None,
    parameters: Annotated[float | None, typer.Option(help="A fixed size.")] = None,
    served_tokens: Annotated[float | None, typer.Option(help="What it will read and write in its life.")] = None,
    law: Annotated[str, typer.Option(help="chinchilla or kaplan, as published.")] = "chinchilla",
    fit: Annotated[
        Path | None, typer.Option(help="Your own law, from talaria fit --output.", metavar="FIT.json")
    ] = None,
    device: Annotated[str, typer.Option(help="here (measured now), or a name such as a100, h100, rtx4090.")] = "here",
    devices: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    utilisation: Annotated[float, typer.Option(help="Share of a named device's peak that training reaches.")] = 0.4,
    price: Annotated[float | None, typer.Option(help="Of one device for an hour.")] = None,
    context: Annotated[int | None, typer.Option(min=8, help="Tokens a training row.")] = None,
    vocab_size: Annotated[int | None, typer.Option(min=261)] = None,
    corpus: Annotated[
        list[Path] | None, typer.Option(help="Files or folders of text; else the embedded world.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The recipe to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """How large, on how much text, for how long and to what loss: from a budget to a recipe."""
    from talaria.commands.scaling import print_plan

    given = {"flops": flops, "tokens": tokens, "params": parameters, "served_tokens": served_tokens}
    machine = {"device": device, "devices": devices, "utilisation": utilisation, "price": price}
    dials = {"context": context, "vocab_size": vocab_size, "corpus": corpus or []}
    print_plan(given, law, fit, {"hours": hours, "money": money, **machine, **dials}, output, as_json)


@app.command()
def ladder(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    plot: Annotated[Path | None, typer.Option(help="A folder for a picture.", metavar="FOLDER")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a sentence.")] = False,
) -> None:
    """Train ten small runs of a recipe and predict the loss of its own; after that run, say whether it fell inside."""
    from talaria.commands.scaling import climb_ladder

    climb_ladder(recipe, overrides or [], plot, as_json)


@app.command()
def emergence(
    results: Annotated[Path, typer.Argument(help="results.csv, or a CSV of scale, task, metric, score, n.")],
    scale: Annotated[str, typer.Option(help="Of a results.csv: params, tokens, flops or step.")] = "params",
    columns: Annotated[
        list[str] | None, typer.Option(help="A column of another name, e.g. scale=params.", metavar="NAME=COLUMN")
    ] = None,
    smooth: Annotated[
        list[str] | None,
        typer.Option(help="A metric that moves with every small change of the model.", metavar="METRIC"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated curves.")] = 0,
    plot: Annotated[
        Path | None, typer.Option(help="A folder for pictures and a page of them.", metavar="FOLDER")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Which tasks grow steadily, suddenly, fall or turn with scale, and whether a jump is more than its metric."""
    from talaria.commands.scaling import print_emergence

    print_emergence(results, scale, columns or [], smooth or [], seed, plot, as_json)


@app.command()
def study(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="A setting, e.g. tokens=200000.", metavar="KEY=VALUE")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of its arms and its report.", metavar="FOLDER")] = Path(
        "runs/study"
    ),
    seeds: Annotated[int | None, typer.Option(help="How many; three unless given.")] = None,
    sizes: Annotated[str | None, typer.Option(help="Widths of the models, e.g. 16,32,64.", metavar="WIDTHS")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Train nothing; report the seeds that are finished.")
    ] = False,
) -> None:
    """Look for steady, sudden and U-shaped curves in a world of symbols: small models of many sizes, one report."""
    from talaria.commands.scaling import conduct_study

    conduct_study(out, seeds, sizes, overrides or [], report)


@app.command()
def compare(first: RunArgument, second: RunArgument) -> None:
    """Two runs side by side: settings that differ, losses, results and whether they differ beyond noise."""
    from talaria.commands.runs import compare_runs

    compare_runs(first, second)


@app.command()
def config(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Print a recipe with every default filled in; starts nothing."""
    from talaria.commands.recipes import print_recipe

    print_recipe(recipe, overrides or [])


@app.command()
def verify(run_folder: RunArgument) -> None:
    """Re-hash the chain from raw text to weights and results."""
    from talaria.commands.runs import verify_run

    verify_run(run_folder)


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe to predict.", metavar="[RECIPE]")] = None,
    overrides: Overrides = None,
) -> None:
    """What this machine can train: predicted memory, disk and time."""
    from talaria.commands.recipes import print_doctor

    print_doctor(recipe, overrides or [])


@app.command()
def serve(
    models: Annotated[
        list[str], typer.Argument(help="Runs, model folders or .gguf files; NAME=PATH names one.", metavar="RUN ...")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    keys: KeysFile = DEFAULT_KEYS,
    no_keys: Annotated[bool, typer.Option("--no-keys", help="Ask for no key; only with a local host.")] = False,
    limits: Annotated[
        list[str] | None, typer.Option("--set", help="A limit, e.g. requests_per_minute=60.", metavar="KEY=VALUE")
    ] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write what is asked and answered.")] = False,
    dtype: Dtype = "float32",
) -> None:
    """Serve models over an OpenAI-compatible API; asks for a key, listens on localhost."""
    from talaria.commands.serving import serve as start_server

    given = [f"host={json.dumps(host)}", f"port={port}", f"log_prompts={json.dumps(log_prompts)}"]
    start_server(models, None if no_keys else keys, [*given, *(limits or [])], dtype)


@app.command()
def annotate(
    models: Annotated[
        list[str], typer.Argument(help="Whose answers are compared; NAME=PATH names one.", metavar="RUN ...")
    ],
    prompts: Annotated[Path | None, typer.Option(help="Prompts (JSONL) that the models answer first.")] = None,
    qualification: Annotated[Path | None, typer.Option(help="Items with known rankings: the test.")] = None,
    hidden: Annotated[Path | None, typer.Option(help="Items with known rankings, mixed in unseen.")] = None,
    guidelines: Annotated[Path | None, typer.Option(help="Markdown; else guidelines.md in RUN.")] = None,
    store: Annotated[str | None, typer.Option(help="SQLite file or database URL; else RUN/feedback.db.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8001,
    keys: KeysFile = DEFAULT_KEYS,
    no_keys: Annotated[bool, typer.Option("--no-keys", help="One annotator, on this machine, without a key.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="E.g. queue.annotators_per_item=2, collect.answers=4.", metavar="KEY=VALUE"),
    ] = None,
) -> None:
    """Serve the page on which people compare answers; each annotator has a key."""
    from talaria.commands.feedback import annotate as start_page

    files = {"prompts": prompts, "qualification": qualification, "hidden": hidden, "guidelines": guidelines}
    start_page(models, store, None if no_keys else keys, files, settings or [], host, port)


@app.command()
def prompts(
    files: Annotated[list[Path], typer.Argument(help="Files of prompts, prompt logs, or runs.", metavar="FILE ...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSONL file to write.")] = Path("prompts.jsonl"),
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="E.g. per_user=50, prefix_characters=200.", metavar="KEY=VALUE")
    ] = None,
) -> None:
    """Gather prompts to be answered: duplicates out, few of each user, personal data masked, split by user."""
    from talaria.commands.feedback import gather_prompts

    gather_prompts(files, output, settings or [])


@app.command()
def selfinstruct(
    url: Annotated[str, typer.Argument(help="An OpenAI-compatible address, e.g. http://127.0.0.1:8000/v1.")],
    seeds: Annotated[Path, typer.Argument(help="Seed tasks (JSONL).", metavar="SEEDS")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    model: Annotated[str, typer.Option(help="The model's name there.")],
    key_variable: Annotated[str | None, typer.Option(help="Environment variable that holds the key.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="E.g. instructions=1000, max_requests=500.", metavar="KEY=VALUE")
    ] = None,
) -> None:
    """Make an SFT set from seed tasks with a model behind a URL; go on where it was stopped."""
    from talaria.commands.feedback import self_instruct

    self_instruct(url, model, seeds, output, key_variable, settings or [])


@feedback_app.command("import")
def import_feedback(
    files: Annotated[list[Path], typer.Argument(help="JSONL or JSON, plain or .gz/.zst.", metavar="FILE ...")],
    store: StoreOption = DEFAULT_STORE,
    form: FormOption = "jsonl",
    criterion: Annotated[str | None, typer.Option(help="What the choices are about, e.g. harmless.")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test.")] = None,
) -> None:
    """Put choices of other projects into a feedback store."""
    from talaria.commands.feedback import import_feedback as read_in

    read_in(files, store, form, criterion, split)


@feedback_app.command("export")
def export_feedback(
    output: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE")],
    store: StoreOption = DEFAULT_STORE,
    form: FormOption = "jsonl",
) -> None:
    """Write the choices that stand, for other programs."""
    from talaria.commands.feedback import export_feedback as write_out

    write_out(output, store, form)


@feedback_app.command("report")
def report_feedback(
    store: StoreOption = DEFAULT_STORE,
    held_out: Annotated[list[str] | None, typer.Option(help="An annotator to set apart; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Who judged how much, how fast and how well, and how far annotators agree."""
    from talaria.commands.feedback import report_feedback as tell

    tell(store, held_out or [], seed, as_json)


@keys_app.command("add")
def add_key(name: KeyName, keys: KeysFile = DEFAULT_KEYS) -> None:
    """Make a key and print it; only its hash is kept."""
    from talaria.commands.serving import change_keys

    change_keys(keys, add=name)


@keys_app.command("list")
def list_keys(keys: KeysFile = DEFAULT_KEYS) -> None:
    """Names of the keys and when they were made."""
    from talaria.commands.serving import change_keys

    change_keys(keys)


@keys_app.command("revoke")
def revoke_key(name: KeyName, keys: KeysFile = DEFAULT_KEYS) -> None:
    """Make a key worthless, also on a running server."""
    from talaria.commands.serving import change_keys

    change_keys(keys, revoke=name)


def _run_until(stage: str | None, recipe: Path, overrides: list[str] | None, force: bool) -> None:
    from talaria.pipeline import run_recipe

    try:
        run_recipe(recipe, overrides or [], until=stage, force=force)
    except KeyboardInterrupt:  # here, since outside typer would end the process without a word
        _fail("interrupted; the same command goes on from the last checkpoint", 130)


def main() -> None:
    """Run the command line; a user's mistake is one line and an exit code, a bug keeps its traceback."""
    try:
        app()
    except UsageError as error:
        _fail(str(error), 2)
    except UserError as error:
        _fail(str(error), 1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for its name
            raise
        _fail(
            f"the GPU's memory is full ({error}); to train, lower micro_batch_tokens; to serve, take --dtype bfloat16 "
            "or what `talaria quantize` writes",
            1,
        )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            _fail(
                f"no space left on disk{_place(error)} ({error.strerror}); free some and run the same command again: "
                "finished stages and the last checkpoint are kept",
                1,
            )
        if isinstance(error, PermissionError):
            _fail(f"not allowed to write or read{_place(error)}; check the owner and mode", 1)
        if error.filename and error.errno in (
            errno.ENOTDIR,
            errno.EISDIR,
            errno.EEXIST,
            errno.ENAMETOOLONG,
            errno.EROFS,
        ):
            _fail(f"{error.filename}: cannot be made ({error.strerror}); choose another path", 1)
        raise


def _place(error: OSError) -> str:
    return f" at {error.filename}" if error.filename else ""


def _fail(message: str, code: int) -> None:
    if os.environ.get("TALARIA_DEBUG"):
        import traceback

        traceback.print_exc()
    one_line = " ".join(message.splitlines())  # a library's own words, quoted in it, may hold line ends
    print(f"talaria: {one_line}", file=sys.stderr)
    sys.exit(code)
