"""The stages that learn from people's choices, and rounds of them: which reads which file of which other.

A round is comparisons, reward model and policy. The first round's stages have the plain names (`comparisons`, `reward`,
`ppo`), those of round 2 `comparisons-2`, `reward-2`, `ppo-2`, and so on; `round-1`, `round-2` ... hold what each came
to. All are stages of the run like any other: what is finished is kept, what was killed resumes.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from talaria.config import Settings
from talaria.eval.settings import EvalSettings
from talaria.feedback.settings import DATABASE, ComparisonSettings, RoundSettings
from talaria.recipe import Recipe
from talaria.run import Revision, Stage, without_passwords
from talaria.train.settings import DpoSettings, GrpoSettings, PpoSettings, RewardSettings
from talaria.world.settings import WorldSettings

FeedbackReader = TypeVar("FeedbackReader", RewardSettings, DpoSettings)


class ComparisonStage(Settings):
    seed: int
    world: WorldSettings
    comparisons: ComparisonSettings


class RewardStage(Settings):
    seed: int
    reward: RewardSettings


class ChoicesStage(Settings):
    """People's choices, frozen for a round."""

    stores: list[str]
    policy: str | None


class RoundStage(Settings):
    """What a round is measured on."""

    seed: int
    items: int
    max_tokens: int


class DpoStage(Settings):
    seed: int
    dpo: DpoSettings


class GrpoStage(Settings):
    seed: int
    grpo: GrpoSettings


class PpoStage(Settings):
    seed: int
    ppo: PpoSettings


def alignment_stages(recipe: Recipe, at: Path) -> Iterator[Stage]:
    """The stages of the recipe's tables from [comparisons] to [rounds], in order."""
    seed = recipe.run.seed
    if recipe.comparisons is not None or recipe.rounds is not None:
        yield _collection(recipe, at)
    if recipe.reward is not None:
        yield _reward(RewardStage(seed=seed, reward=recipe.reward), recipe, at)
    if recipe.dpo is not None:
        yield _dpo(DpoStage(seed=seed, dpo=recipe.dpo), recipe, at)
    if recipe.grpo is not None:
        yield _grpo(GrpoStage(seed=seed, grpo=recipe.grpo), recipe, at)
    if recipe.ppo is not None:
        yield _ppo(PpoStage(seed=seed, ppo=recipe.ppo), recipe, at)
        if has_twin(recipe):
            without = recipe.ppo.model_copy(update={"ptx_coefficient": 0.0})
            yield _ppo(PpoStage(seed=seed, ppo=without), recipe, at, name="ppo-without-ptx")
    if recipe.rounds is not None:
        yield from _rounds(recipe, recipe.rounds, at)


def _collection(recipe: Recipe, at: Path, number: int = 1) -> Stage:
    """Comparisons of answers of the newest policy: simulated in the world, else what people have chosen so far."""
    newest, seed = policy_stage(number - 1), recipe.run.seed
    if recipe.world is not None and recipe.comparisons is not None:
        from talaria.infer.contract import row_seed

        settings = recipe.comparisons
        if number > 1 and recipe.rounds is not None and recipe.rounds.prompts is not None:
            settings = settings.model_copy(update={"prompts": recipe.rounds.prompts})
        # Another seed for each round: another draw of questions, and other errors of the labelers.
        stage = ComparisonStage(seed=row_seed(seed, number - 1), world=recipe.world, comparisons=settings)
        return _comparisons(stage, at, newest, number)
    assert recipe.rounds is not None and recipe.reward is not None
    stores = [name.removeprefix("sqlite:///") for name in recipe.reward.feedback]
    asked = None if number == 1 else newest
    return _choices(ChoicesStage(stores=stores, policy=asked), recipe.rounds.wanted, at, newest, number)


def _comparisons(settings: ComparisonStage, at: Path, newest: str, number: int) -> Stage:
    model = at / newest / "model"

    def work(folder: Path) -> None:
        from talaria.feedback.comparisons import collect_comparisons
        from talaria.infer.load import load

        batch = settings.comparisons.batch_size
        engine = load(model, compiled=False, max_batch_size=batch, prefix_cache=False)
        collect_comparisons(settings.comparisons, settings.world, engine, newest, settings.seed, folder)

    return Stage(numbered("comparisons", number), settings, {"model": model}, (newest,), work)


def _choices(settings: ChoicesStage, wanted: int, at: Path, newest: str, number: int) -> Stage:
    """`wanted` is no setting of the stage: a round that was made stays as it is when a later one asks for less."""
    kept = settings.model_copy(update={"stores": [without_passwords(name) for name in settings.stores]})

    def work(folder: Path) -> None:
        from talaria.feedback.snapshot import freeze_choices

        next_step = (
            f"let people compare: talaria annotate {newest}={at / newest} --store {kept.stores[0]} "
            "--prompts NEW.jsonl; then run this command again"
        )
        freeze_choices(settings.stores, settings.policy, wanted, next_step, folder)

    return Stage(numbered("comparisons", number), kept, {"model": at / newest / "model"}, (newest,), work)


def _reward(settings: RewardStage, recipe: Recipe, at: Path, number: int = 1) -> Stage:
    base = at / "sft" / "model"
    databases, inputs, parents = _feedback(settings.reward.feedback, recipe, at, number)
    kept = settings.model_copy(update={"reward": _without_passwords(settings.reward)})

    def work(folder: Path) -> None:
        from talaria.train.reward import train_reward

        train_reward(settings.reward, base, databases, settings.seed, folder)

    return Stage(numbered("reward", number), kept, {"base": base, **inputs}, ("sft", *parents), work)


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


def _ppo(settings: PpoStage, recipe: Recipe, at: Path, number: int = 1, name: str = "ppo") -> Stage:
    """The policy of a round: it begins as the one before, whose distance is measured from the fine-tuned model."""
    settings = settings.model_copy(update={"ppo": settings.ppo.model_copy(update={"also_without_ptx": False})})
    rewarder = numbered("reward", number)
    base, reward, replay, start = at / "sft" / "model", at / rewarder / "reward_model", None, None
    files, inputs, parents = _prompts(settings.ppo.prompts, recipe, at, number)
    if number > 1:
        inputs["start"] = start = at / policy_stage(number - 1) / "model"
        parents.append(policy_stage(number - 1))
    if settings.ppo.ptx_coefficient:
        inputs["replay"] = replay = at / "tokenizer" / "shards"
        parents.append("tokenizer")

    def work(folder: Path) -> None:
        from talaria.train.ppo import ppo

        ppo(settings.ppo, base, reward, files, replay, settings.seed, folder, start)

    inputs |= {"base": base, "reward": reward}
    return Stage(numbered(name, number), settings, inputs, ("sft", rewarder, *parents), work)


def _rounds(recipe: Recipe, rounds: RoundSettings, at: Path) -> Iterator[Stage]:
    """The rounds after the first, whose stages are the recipe's own, and what each came to."""
    from talaria.infer.contract import row_seed

    assert recipe.reward is not None and recipe.ppo is not None
    seed = recipe.run.seed
    for number in range(1, rounds.number + 1):
        if number > 1:
            yield _collection(recipe, at, number)
            yield _reward(RewardStage(seed=seed, reward=recipe.reward), recipe, at, number)
            yield _ppo(PpoStage(seed=row_seed(seed, number - 1), ppo=recipe.ppo), recipe, at, number)
        yield _round(RoundStage(seed=seed, items=rounds.items, max_tokens=recipe.ppo.max_tokens), recipe, at, number)


def _round(settings: RoundStage, recipe: Recipe, at: Path, number: int) -> Stage:
    names = list(dict.fromkeys(policy_stage(n) for n in (0, number - 1, number)))
    rewarder = numbered("reward", number)
    assert recipe.ppo is not None and recipe.reward is not None
    files, inputs, parents = _prompts(recipe.ppo.prompts, recipe, at, number)
    if recipe.world is not None:
        files, inputs, parents = [], {"exam": at / "world" / "exam.jsonl"}, ["world"]
    databases: list[list[str]] = []
    for earlier in range(1, number + 1):
        found = _feedback(recipe.reward.feedback, recipe, at, earlier)
        databases.append(found[0])
        inputs |= found[1]
        parents += [stage for stage in found[2] if stage not in parents]
    inputs |= {name: at / name / "model" for name in names}
    inputs |= {"reward": at / rewarder / "reward_model", "quality": at / rewarder / "reward.json"}

    def work(folder: Path) -> None:
        from talaria.eval.rounds import measure_round

        models = {name: at / name / "model" for name in names}
        exam = None if recipe.world is None else at / "world" / "exam.jsonl"
        told = EvalSettings(preference_items=settings.items, max_tokens=settings.max_tokens)
        measure_round(told, number, models, at / rewarder, databases, exam, files, settings.seed, folder)

    return Stage(f"round-{number}", settings, inputs, (*names, rewarder, *parents), work)


def numbered(stage: str, number: int) -> str:
    """The name of a stage in a round; the first round's stages are the recipe's own."""
    return stage if number == 1 else f"{stage}-{number}"


def policy_stage(number: int) -> str:
    """The stage whose model is the policy after a round, the fine-tuned model after round 0."""
    return "sft" if number == 0 else numbered("ppo", number)


def has_twin(recipe: Recipe) -> bool:
    return recipe.ppo is not None and recipe.ppo.also_without_ptx and recipe.ppo.ptx_coefficient > 0


def _feedback(
    given: list[str], recipe: Recipe, at: Path, number: int = 1
) -> tuple[list[str], dict[str, Path | Revision], list[str]]:
    """Databases of all comparisons up to a round, the same as inputs, and parents. The revision of one behind a URL is
    the hash of its choices, which tells later that there are others: taken anew for each stage, since a stage that
    begins hours after another reads what is there then. People's choices are frozen as a whole in each round."""
    asks_people = recipe.rounds is not None and recipe.world is None
    if asks_people and recipe.reward is not None and given == recipe.reward.feedback:
        stages, given = [numbered("comparisons", number)], []
    elif recipe.comparisons is not None:
        stages = [numbered("comparisons", n) for n in range(1, number + 1)]
        stages = stages[1:] if given else stages
    else:
        stages = []
    databases, parents = [name.removeprefix("sqlite:///") for name in given], list[str]()
    inputs: dict[str, Path | Revision] = {}
    for name in databases:
        if "://" in name:
            inputs[f"feedback {without_passwords(name)}"] = Revision(_choices_sha256(name))
        else:
            _settle(Path(name))
    databases += [str(at / stage / DATABASE) for stage in stages]
    parents += stages
    return databases, inputs | {f"feedback {name}": Path(name) for name in databases if "://" not in name}, parents


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


def _prompts(
    given: list[str], recipe: Recipe, at: Path, number: int = 1
) -> tuple[list[Path], dict[str, Path | Revision], list[str]]:
    """Files of prompts, the same as inputs, and parents."""
    files, parents = [Path(path) for path in given], []
    if not given and recipe.comparisons is not None:
        files.append(at / numbered("comparisons", number) / "policy_prompts.jsonl")
        parents.append(numbered("comparisons", number))
    return files, {f"prompts {number}": file for number, file in enumerate(files)}, parents
