"""The stages of a run in order, and how a recipe runs them. Rooms are imported where they are used, so
that printing a recipe needs no torch."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from talaria.config import Settings
from talaria.corpus.settings import CorpusSettings
from talaria.errors import UsageError
from talaria.eval.settings import EvalSettings
from talaria.feedback.settings import ComparisonSettings, ConversationSettings
from talaria.model.settings import ModelSettings
from talaria.preflight import check_sources, check_texts
from talaria.recipe import Recipe, read_recipe, run_path
from talaria.run import Revision, Stage, is_finished, lock, read_json, run_stage, without_passwords
from talaria.tokens.settings import TokenizerSettings
from talaria.train.settings import (
    DpoSettings,
    GrpoSettings,
    PlanSettings,
    PpoSettings,
    PretrainSettings,
    RewardSettings,
    SftSettings,
)
from talaria.world.settings import WorldSettings

FeedbackReader = TypeVar("FeedbackReader", RewardSettings, DpoSettings)
console = Console(stderr=True, highlight=False, soft_wrap=True)  # a path can be copied whole
LADDER = "ladder.json"
"""In a run's folder: what a ladder's rungs predict of its pretraining."""


class PretrainStage(Settings):
    """All that decides a pretraining run, besides its inputs."""

    seed: int
    model: ModelSettings
    pretrain: PretrainSettings


class SftStage(Settings):
    seed: int
    sft: SftSettings


class ComparisonStage(Settings):
    seed: int
    world: WorldSettings
    comparisons: ComparisonSettings


class RewardStage(Settings):
    seed: int
    reward: RewardSettings


class DpoStage(Settings):
    seed: int
    dpo: DpoSettings


class GrpoStage(Settings):
    seed: int
    grpo: GrpoSettings


class PpoStage(Settings):
    seed: int
    ppo: PpoSettings


class EvalStage(Settings):
    seed: int
    eval: EvalSettings


# ----------------------------------------------------------------------------------------- stages


def stages(recipe: Recipe) -> Iterator[Stage]:
    """The recipe's stages in order. Each is built only when its turn comes: later ones read earlier ones' files."""
    at = run_path(recipe)
    seed = recipe.run.seed
    if recipe.world is not None:
        yield _world(recipe.world)
    if recipe.corpus is not None:
        yield _corpus(recipe.corpus, at, has_world=recipe.world is not None)
    if recipe.tokenizer is not None:
        yield _tokenizer(recipe.tokenizer, at)
    if recipe.conversations is not None:
        yield _conversations(recipe.conversations, at)
    if recipe.pretrain is not None:
        yield _pretrain(PretrainStage(seed=seed, model=recipe.model, pretrain=recipe.pretrain), recipe, at)
    if recipe.sft is not None:
        yield _sft(SftStage(seed=seed, sft=recipe.sft), recipe, at)
    if recipe.comparisons is not None and recipe.world is not None:
        yield _comparisons(ComparisonStage(seed=seed, world=recipe.world, comparisons=recipe.comparisons), at)
    if recipe.reward is not None:
        yield _reward(RewardStage(seed=seed, reward=recipe.reward), recipe, at)
    if recipe.dpo is not None:
        yield _dpo(DpoStage(seed=seed, dpo=recipe.dpo), recipe, at)
    if recipe.grpo is not None:
        yield _grpo(GrpoStage(seed=seed, grpo=recipe.grpo), recipe, at)
    if recipe.ppo is not None:
        yield _ppo(PpoStage(seed=seed, ppo=recipe.ppo), recipe, at)
    if recipe.eval is not None:
        yield _evaluation(EvalStage(seed=seed, eval=recipe.eval), recipe, at)


def _world(settings: WorldSettings) -> Stage:
    def work(folder: Path) -> None:
        from talaria.world.build import write_world

        write_world(settings, folder)

    return Stage("world", settings, {}, (), work)


def _corpus(settings: CorpusSettings, at: Path, has_world: bool) -> Stage:
    from talaria.corpus.document import HUB, dataset_inputs
    from talaria.corpus.files import find_files

    files, _ = find_files([path for path in settings.paths if not path.startswith(HUB)])
    datasets = dataset_inputs(settings.paths, at / "corpus")
    revisions = {name: found.name for name, found in datasets.items() if isinstance(found, Revision)}
    inputs: dict[str, Path | Revision] = {**{str(file): file for file in files}, **datasets}
    paths = settings.paths
    if has_world:
        inputs["pages"] = pages = at / "world" / "pages.jsonl"
        paths = [*paths, str(pages)]
    exam = at / "world" / "exam.jsonl" if has_world and settings.decontaminate else None
    if exam is not None:
        inputs["exam"] = exam

    def work(folder: Path) -> None:
        from talaria.corpus.build import build_corpus

        build_corpus(settings.model_copy(update={"paths": paths}), folder, exam, revisions)

    return Stage("corpus", settings, inputs, ("world",) if has_world else (), work)


def _tokenizer(settings: TokenizerSettings, at: Path) -> Stage:
    def work(folder: Path) -> None:
        from talaria.corpus.build import read_corpus
        from talaria.tokens.shards import write_shards
        from talaria.tokens.tokenizer import Tokenizer

        tokenizer = Tokenizer.train((document.text for document in read_corpus(at / "corpus")), settings)
        tokenizer.save(folder / "tokenizer")
        write_shards(read_corpus(at / "corpus"), tokenizer, folder / "shards", settings)

    return Stage("tokenizer", settings, {"corpus": at / "corpus"}, ("corpus",), work)


def _pretrain(settings: PretrainStage, recipe: Recipe, at: Path) -> Stage:
    def work(folder: Path) -> None:
        from talaria.train.pretrain import pretrain

        check_texts(recipe)
        predicted = _predicted(settings, recipe.plan, at / LADDER)
        pretrain(settings.pretrain, settings.model, at / "tokenizer", settings.seed, folder, predicted)

    return Stage("pretrain", settings, {"tokenizer": at / "tokenizer"}, ("tokenizer",), work)


def _predicted(settings: PretrainStage, plan: PlanSettings | None, ladder: Path) -> PlanSettings:
    """What the recipe's [plan] says of the run, and in place of its loss what a ladder's rungs said of this very
    run."""
    plan = plan or PlanSettings()
    told = read_json(ladder) if ladder.is_file() else {}
    if told.get("predicted_run") != settings.model_dump(mode="json"):
        return plan
    return PlanSettings(**plan.model_dump() | told["plan"])


def _conversations(settings: ConversationSettings, at: Path) -> Stage:
    def work(folder: Path) -> None:
        from talaria.corpus.build import read_corpus
        from talaria.feedback.continuations import write_continuations

        write_continuations(read_corpus(at / "corpus"), settings, folder / "conversations.jsonl")

    return Stage("conversations", settings, {"corpus": at / "corpus"}, ("corpus",), work)


def _sft(settings: SftStage, recipe: Recipe, at: Path) -> Stage:
    parents: list[str] = []
    inputs: dict[str, Path | Revision] = {}
    if settings.sft.base is not None:
        inputs["base"] = base = Path(settings.sft.base)
    else:
        inputs["base"] = base = at / "pretrain" / "model"
        parents.append("pretrain")
    files = [Path(path) for path in settings.sft.conversations]
    for stage, table in (("world", recipe.world), ("conversations", recipe.conversations)):
        if table is not None:
            files.append(at / stage / "conversations.jsonl")
            parents.append(stage)
    inputs |= {f"conversations {i}": file for i, file in enumerate(files)}
    replay = None
    if settings.sft.replay_share:
        inputs["replay"] = replay = at / "tokenizer" / "shards"
        parents.append("tokenizer")

    def work(folder: Path) -> None:
        from talaria.train.sft import sft

        sft(settings.sft, base, files, replay, settings.seed, folder)

    return Stage("sft", settings, inputs, tuple(parents), work)


def _comparisons(settings: ComparisonStage, at: Path) -> Stage:
    model = at / "sft" / "model"

    def work(folder: Path) -> None:
        from talaria.feedback.comparisons import collect_comparisons
        from talaria.infer.load import load

        batch = settings.comparisons.batch_size
        engine = load(model, compiled=False, max_batch_size=batch, prefix_cache=False)
        collect_comparisons(settings.comparisons, settings.world, engine, "sft", settings.seed, folder)

    return Stage("comparisons", settings, {"model": model}, ("sft",), work)


def _reward(settings: RewardStage, recipe: Recipe, at: Path) -> Stage:
    base = at / "sft" / "model"
    databases, inputs, parents = _feedback(settings.reward.feedback, recipe, at)
    kept = settings.model_copy(update={"reward": _without_passwords(settings.reward)})

    def work(folder: Path) -> None:
        from talaria.train.reward import train_reward

        train_reward(settings.reward, base, databases, settings.seed, folder)

    return Stage("reward", kept, {"base": base, **inputs}, ("sft", *parents), work)


def _dpo(settings: DpoStage, recipe: Recipe, at: Path) -> Stage:
    base = at / "sft" / "model"
    databases, inputs, parents = _feedback(settings.dpo.feedback, recipe, at)
    kept = settings.model_copy(update={"dpo": _without_passwords(settings.dpo)})

    def work(folder: Path) -> None:
        from talaria.train.dpo import dpo

        dpo(settings.dpo, base, databases, settings.seed, folder)

    return Stage("dpo", kept, {"base": base, **inputs}, ("sft", *parents), work)


def _grpo(settings: GrpoStage, recipe: Recipe, at: Path) -> Stage:
    base, reward = at / "sft" / "model", None
    files, inputs, parents = _prompts(settings.grpo.prompts, recipe, at)
    if settings.grpo.reward == "model":
        inputs["reward"] = reward = at / "reward" / "reward_model"
        parents.append("reward")

    def work(folder: Path) -> None:
        from talaria.train.grpo import grpo

        grpo(settings.grpo, base, reward, files, settings.seed, folder)

    return Stage("grpo", settings, {"base": base, **inputs}, ("sft", *parents), work)


def _ppo(settings: PpoStage, recipe: Recipe, at: Path) -> Stage:
    base, reward, replay = at / "sft" / "model", at / "reward" / "reward_model", None
    files, inputs, parents = _prompts(settings.ppo.prompts, recipe, at)
    if settings.ppo.ptx_coefficient:
        inputs["replay"] = replay = at / "tokenizer" / "shards"
        parents.append("tokenizer")

    def work(folder: Path) -> None:
        from talaria.train.ppo import ppo

        ppo(settings.ppo, base, reward, files, replay, settings.seed, folder)

    return Stage("ppo", settings, {"base": base, "reward": reward, **inputs}, ("sft", "reward", *parents), work)


def _feedback(given: list[str], recipe: Recipe, at: Path) -> tuple[list[str], dict[str, Path | Revision], list[str]]:
    """Databases of comparisons, the same as inputs, and parents. The revision of one behind a URL is the hash of its
    choices, which tells later that there are others."""
    databases, parents = [name.removeprefix("sqlite:///") for name in given], []
    if not given and recipe.comparisons is not None:
        databases.append(str(at / "comparisons" / "feedback.db"))
        parents.append("comparisons")
    inputs: dict[str, Path | Revision] = {}
    for name in databases:
        if "://" in name:
            inputs[f"feedback {without_passwords(name)}"] = Revision(_choices_sha256(name))
        else:
            if given:
                _settle(Path(name))
            inputs[f"feedback {name}"] = Path(name)
    return databases, inputs, parents


def _choices_sha256(url: str) -> str:
    from talaria.feedback.store import FeedbackStore

    store = FeedbackStore(url)
    try:
        return store.choices_sha256()
    finally:
        store.close()


def _without_passwords(settings: FeedbackReader) -> FeedbackReader:
    """The settings of a stage as its folder keeps them."""
    return settings.model_copy(update={"feedback": [without_passwords(name) for name in settings.feedback]})


def _settle(database: Path) -> None:
    """Bring what a server has written lately into the file itself, whose hash is the stage's input."""
    if database.with_name(database.name + "-wal").exists():
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _prompts(given: list[str], recipe: Recipe, at: Path) -> tuple[list[Path], dict[str, Path | Revision], list[str]]:
    """Files of prompts, the same as inputs, and parents."""
    files, parents = [Path(path) for path in given], []
    if not given and recipe.comparisons is not None:
        files.append(at / "comparisons" / "policy_prompts.jsonl")
        parents.append("comparisons")
    return files, {f"prompts {number}": file for number, file in enumerate(files)}, parents


def _evaluation(settings: EvalStage, recipe: Recipe, at: Path) -> Stage:
    from talaria.eval.evaluate import Candidate

    trained = [name for name in ("pretrain", "sft", "dpo", "grpo", "ppo") if getattr(recipe, name) is not None]
    inputs: dict[str, Path | Revision] = {name: at / name / "model" for name in trained}
    if recipe.world is not None:
        inputs["exam"] = at / "world" / "exam.jsonl"
    else:
        inputs["tokenizer"] = at / "tokenizer"

    def work(folder: Path) -> None:
        import torch

        from talaria.eval.evaluate import evaluate_models
        from talaria.eval.validation import evaluate_validation
        from talaria.infer.load import load
        from talaria.model.checkpoint import load_model, save_model
        from talaria.model.transformer import Transformer

        models = [Candidate(name, at / name / "model", "plain" if name == "pretrain" else "chat") for name in trained]
        if recipe.world is None:
            evaluate_validation(settings.eval, models, at / "tokenizer" / "shards", folder, settings.seed)
            return
        with tempfile.TemporaryDirectory() as scratch:
            if recipe.pretrain is not None:
                model, tokenizer = load_model(at / "pretrain" / "model")
                untrained = Transformer(model.shape, torch.Generator().manual_seed(settings.seed))
                save_model(untrained, tokenizer, Path(scratch) / "model")
                place = Path(scratch) / "model"
                models.insert(0, Candidate("untrained", place, "plain", settings.eval.untrained_per_task))
            evaluate_models(
                settings.eval,
                models,
                at / "world" / "exam.jsonl",
                folder,
                # Questions hardly begin alike.
                load_engine=partial(load, compiled=False, max_batch_size=settings.eval.batch_size, prefix_cache=False),
                seed=settings.seed,
            )

    return Stage("eval", settings, inputs, (*trained, "world" if recipe.world else "tokenizer"), work)


# --------------------------------------------------------------------------------------- commands


def run_recipe(path: Path, overrides: list[str], until: str | None = None, force: bool = False) -> None:
    """Run a recipe's stages, up to and with `until`; `force` runs that one again. Then write the report."""
    recipe = read_recipe(path, overrides)
    at = run_path(recipe)
    if until is not None and getattr(recipe, until) is None:
        raise UsageError(f"{path}: has no [{until}] table, so there is no such stage")
    check_sources(recipe, path, until)
    many_ranks = "RANK" in os.environ  # started by torchrun
    if many_ranks:
        from talaria.train import parallel

        parallel.start()
        if parallel.rank() > 0:
            parallel.follow(lambda name: next(stage for stage in stages(recipe) if stage.name == name).work)
            return
    with lock(at):
        for stage in stages(recipe):
            if many_ranks and stage.name in ("pretrain", "sft"):
                stage = replace(stage, work=parallel.led(stage.name, stage.work))
            started = time.monotonic()
            ran = run_stage(at, stage, force and stage.name == until)
            told = f"done in {time.monotonic() - started:,.1f} s" if ran else "is current"
            console.print(f"[bold]{stage.name:<14}[/bold]{told}")
            if stage.name == until:
                break
        from talaria.report.page import write_report

        report = write_report(at)
    if many_ranks:
        parallel.finish()
    console.print(f"report: {report}")
    if is_finished(at / "sft") or is_finished(at / "pretrain"):
        console.print(f"talk to it: talaria chat {at}")
