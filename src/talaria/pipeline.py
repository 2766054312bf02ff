"""The stages of a run in order, and how a recipe runs them. Rooms are imported where they are used, so
that printing a recipe needs no torch."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from talaria.alignment import alignment_stages, has_twin, numbered, policy_stage
from talaria.config import Settings
from talaria.corpus.settings import CorpusSettings
from talaria.errors import UsageError
from talaria.eval.settings import EvalSettings
from talaria.feedback.settings import ConversationSettings
from talaria.files import read_json
from talaria.model.settings import ModelSettings
from talaria.preflight import check_sources, check_texts
from talaria.recipe import Recipe, read_recipe, run_path
from talaria.run import Revision, Stage, is_finished, lock, output_sha256, run_stage
from talaria.tokens.settings import TokenizerSettings
from talaria.train.settings import PlanSettings, PretrainSettings, SftSettings
from talaria.world.settings import WorldSettings

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
        yield pretrain_stage(PretrainStage(seed=seed, model=recipe.model, pretrain=recipe.pretrain), at, recipe)
    if recipe.sft is not None:
        yield _sft(SftStage(seed=seed, sft=recipe.sft), recipe, at)
    yield from alignment_stages(recipe, at)
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


def pretrain_stage(settings: PretrainStage, at: Path, recipe: Recipe | None, name: str = "pretrain") -> Stage:
    """`recipe` is that of the run; None for a ladder's rung, which is no run that later stages go on from."""

    def work(folder: Path) -> None:
        from talaria.train.pretrain import pretrain

        predicted = PlanSettings()
        if recipe is not None:
            check_texts(recipe)
            predicted = _predicted(settings, recipe.plan, at)
        pretrain(settings.pretrain, settings.model, at / "tokenizer", settings.seed, folder, predicted)

    return Stage(name, settings, {"tokenizer": at / "tokenizer"}, ("tokenizer",), work)


def _predicted(settings: PretrainStage, plan: PlanSettings | None, at: Path) -> PlanSettings:
    """What the recipe's [plan] says of the run, and in place of its loss what a ladder's rungs said of this very
    run on this very text."""
    plan = plan or PlanSettings()
    if not (at / LADDER).is_file():
        return plan
    told = read_json(at / LADDER)
    other = "settings" if told.get("predicted_run") != settings.model_dump(mode="json") else None
    if other is None and told.get("text_sha256") != output_sha256(at / "tokenizer"):
        other = "text"
    if other is not None:
        console.print(f"{at / LADDER} is of other {other}, so it predicts nothing of this run; see talaria ladder")
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


def _evaluation(settings: EvalStage, recipe: Recipe, at: Path) -> Stage:
    from talaria.eval.evaluate import Candidate

    trained = [name for name in ("pretrain", "sft", "dpo", "grpo") if getattr(recipe, name) is not None]
    last = 0 if recipe.ppo is None else 1 if recipe.rounds is None else recipe.rounds.number
    trained += ["ppo-without-ptx"] if has_twin(recipe) else []
    trained += [policy_stage(number) for number in range(1, last + 1)]
    policies = {name: at / name / "model" for name in trained if name not in ("pretrain", "sft")}
    parents = [*trained, "world" if recipe.world is not None else "tokenizer"]
    inputs: dict[str, Path | Revision] = {name: at / name / "model" for name in trained}
    reward, shards = None, None
    if recipe.world is not None and recipe.reward is not None and policies and settings.eval.preference_items:
        rewarder = numbered("reward", max(1, last))
        inputs["reward"] = reward = at / rewarder / "reward_model"
        parents.append(rewarder)
    if recipe.world is not None and recipe.tokenizer is not None and (recipe.sft is None or recipe.sft.base is None):
        inputs["tokenizer"] = shards = at / "tokenizer" / "shards"
        parents.append("tokenizer")
    if recipe.world is not None:
        inputs["exam"] = at / "world" / "exam.jsonl"
    else:
        inputs["tokenizer"] = at / "tokenizer"

    def work(folder: Path) -> None:
        import torch

        from talaria.eval.evaluate import evaluate_models
        from talaria.eval.preferences import evaluate_preferences
        from talaria.eval.stages import evaluate_stages
        from talaria.eval.validation import evaluate_validation
        from talaria.infer.load import load
        from talaria.model.checkpoint import load_model, save_model
        from talaria.model.transformer import Transformer
        from talaria.world.two_turns import two_turn_items

        # Questions hardly begin alike.
        load_engine = partial(load, compiled=False, max_batch_size=settings.eval.batch_size, prefix_cache=False)
        exam = at / "world" / "exam.jsonl"
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
            evaluate_models(settings.eval, models, exam, folder, load_engine=load_engine, seed=settings.seed)
        models = [model for model in models if model.name != "untrained"]
        asks_all = settings.eval.tasks is None and settings.eval.dialogues > 0
        dialogues = two_turn_items(recipe.world, settings.eval.dialogues) if asks_all else []
        evaluate_stages(
            settings.eval, models, exam, dialogues, shards, folder, load_engine=load_engine, seed=settings.seed
        )
        if policies and settings.eval.preference_items:
            base = at / "sft" / "model"
            evaluate_preferences(settings.eval, base, policies, reward, exam, folder, settings.seed)

    return Stage("eval", settings, inputs, tuple(parents), work)


# --------------------------------------------------------------------------------------- commands


def run_recipe(path: Path, overrides: list[str], until: str | None = None, force: bool = False) -> None:
    """Run a recipe's stages, up to and with `until`; `force` runs that one again. Then write the report."""
    recipe = read_recipe(path, overrides)
    at = run_path(recipe)
    if until is not None and getattr(recipe, until) is None:
        raise UsageError(f"{path}: has no [{until}] table, so there is no such stage")
    last = f"round-{recipe.rounds.number}" if until == "rounds" and recipe.rounds is not None else until
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
            ran = run_stage(at, stage, force and stage.name == last)
            told = f"done in {time.monotonic() - started:,.1f} s" if ran else "is current"
            console.print(f"[bold]{stage.name:<16}[/bold]{told}")
            if stage.name.startswith("round-"):
                from talaria.report.alignment import round_sentence

                console.print(round_sentence(read_json(at / stage.name / "round.json")))
            if stage.name == last:
                break
        from talaria.report.page import write_report

        report = write_report(at)
    if many_ranks:
        parallel.finish()
    console.print(f"report: {report}")
    if is_finished(at / "sft") or is_finished(at / "pretrain"):
        console.print(f"talk to it: talaria chat {at}")
