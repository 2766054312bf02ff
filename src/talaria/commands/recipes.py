"""Before a run: a recipe for own text, a recipe with every default, what this machine can train."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

from rich.console import Console

from talaria.commands.console import console
from talaria.config import to_toml
from talaria.errors import UsageError, UserError
from talaria.files import atomic_write
from talaria.recipe import read_recipe, run_path


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


def print_recipe(path: Path, overrides: list[str]) -> None:
    """Print the resolved recipe to standard output, as TOML."""
    print(to_toml(read_recipe(path, overrides)), end="")


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
