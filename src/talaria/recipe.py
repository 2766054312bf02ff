"""A TOML file and key=value overrides in, the settings of a whole run out, or why they cannot work. No torch, so that a
mistake is told at once.

    recipe = read_recipe(Path("recipes/laptop.toml"), ["model.depth=6"])
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from talaria.config import Settings, apply_overrides, load_table, resolve
from talaria.corpus.settings import CorpusSettings
from talaria.errors import UsageError
from talaria.eval.settings import EvalSettings
from talaria.feedback.settings import ComparisonSettings, ConversationSettings, RoundSettings
from talaria.model.settings import ModelSettings, resolve_shape
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


def _as_text(value: Any) -> Any:
    """run.name=2024 and run.name=2024-10-01 are read as names."""
    is_plain = isinstance(value, int | float | datetime.date) and not isinstance(value, bool)
    return str(value) if is_plain else value


def _folder_name(name: str) -> str:
    if name in ("", ".", "..") or set("/\\") & set(name) or not name.isprintable() or len(name) > 200:
        raise ValueError("must be a short, plain folder name, without / and \\; run.folder is the place for a path")
    return name


FolderName = Annotated[str, BeforeValidator(_as_text), AfterValidator(_folder_name)]


class RunSettings(Settings):
    """Where a run lives and the seed that all its draws come from."""

    name: FolderName | None = None
    """Folder below `folder`; absent, the recipe's file name."""
    folder: str = "runs"
    seed: int = Field(default=0, ge=0, lt=1 << 63)


class Recipe(Settings):
    """One pipeline. A stage runs if its table is there."""

    run: RunSettings = RunSettings()
    world: WorldSettings | None = None
    corpus: CorpusSettings | None = None
    tokenizer: TokenizerSettings | None = None
    model: ModelSettings = ModelSettings()
    pretrain: PretrainSettings | None = None
    plan: PlanSettings | None = None
    """What was predicted of [pretrain]; no stage."""
    conversations: ConversationSettings | None = None
    sft: SftSettings | None = None
    comparisons: ComparisonSettings | None = None
    reward: RewardSettings | None = None
    dpo: DpoSettings | None = None
    grpo: GrpoSettings | None = None
    ppo: PpoSettings | None = None
    rounds: RoundSettings | None = None
    eval: EvalSettings | None = None


def read_recipe(path: Path, overrides: list[str]) -> Recipe:
    """Defaults < recipe < overrides; UsageError names what does not fit."""
    recipe = resolve(Recipe, apply_overrides(load_table(path), overrides), str(path))
    if recipe.run.name is None:
        run = resolve(RunSettings, recipe.run.model_dump() | {"name": path.stem}, f"{path}: run")
        recipe = recipe.model_copy(update={"run": run})
    for problem in _misfits(recipe):
        raise UsageError(f"{path}: {problem}")
    return recipe


def run_path(recipe: Recipe) -> Path:
    assert recipe.run.name is not None
    return Path(recipe.run.folder) / recipe.run.name


def _misfits(recipe: Recipe) -> Iterator[str]:
    """Why tables that are right by themselves cannot work together: what would else fail after hours of training."""
    world, corpus, tokenizer, sft = recipe.world, recipe.corpus, recipe.tokenizer, recipe.sft
    needs = {"tokenizer": "corpus", "pretrain": "tokenizer", "conversations": "corpus"}
    for stage, before in needs.items():
        if getattr(recipe, stage) is not None and getattr(recipe, before) is None:
            yield f"[{stage}] needs a [{before}] table, which is absent; add it, or drop [{stage}]"
    if corpus is not None and not corpus.paths and world is None:
        yield "corpus.paths is empty and there is no [world]; give corpus.paths=[FILE or FOLDER]"
    if tokenizer is not None and tokenizer.kind == "bpe" and not tokenizer.special_tokens:
        yield 'tokenizer.special_tokens = false needs tokenizer.kind = "character"; change one of them'
    if recipe.pretrain is not None and tokenizer is not None:
        try:
            resolve_shape(recipe.model, tokenizer.vocab_size)
        except UsageError as error:
            yield str(error)
    if sft is not None:
        yield from _sft_misfits(recipe, sft)
    yield from _alignment_misfits(recipe)
    if recipe.eval is not None:
        yield from _eval_misfits(recipe, recipe.eval)


def _sft_misfits(recipe: Recipe, sft: SftSettings) -> Iterator[str]:
    if sft.epochs == 0:
        if sft.base is None:
            yield "sft.epochs = 0 takes a fine-tuned model as it is; name it by sft.base, or set sft.epochs"
    elif not sft.conversations and recipe.world is None and recipe.conversations is None:
        yield "[sft] has no conversations; give sft.conversations=[FILE.jsonl]"
    if sft.lora is not None and sft.optimizer.name != "adamw":
        yield "sft.lora is trained by adamw; set sft.optimizer.name=adamw, or drop sft.lora"
    if sft.base is not None:
        if sft.replay_share:
            yield "sft.replay_share has no pretraining text to take where sft.base is given; drop it"
        return
    if recipe.pretrain is None:
        yield "[sft] has neither a [pretrain] table nor sft.base to start from; give one, or drop [sft]"
    if recipe.tokenizer is not None and not recipe.tokenizer.special_tokens:
        yield "[sft] needs a chat format, but tokenizer.special_tokens is false; set it to true"
    context = min(sft.context or recipe.model.context, recipe.model.context)
    if sft.replay_share and sft.batch_tokens is not None and round(sft.batch_tokens / context) < 2:
        yield (
            f"sft.replay_share needs two rows a batch, one to replay; set sft.batch_tokens to {2 * context} or more, "
            "or sft.context lower"
        )


def _alignment_misfits(recipe: Recipe) -> Iterator[str]:
    for stage in ("comparisons", "reward", "dpo", "grpo", "ppo"):
        if getattr(recipe, stage) is not None and recipe.sft is None:
            yield f"[{stage}] begins with the fine-tuned model; add [sft], or drop [{stage}]"
    if recipe.comparisons is not None and recipe.world is None:
        yield "[comparisons] has labelers of the world alone; add [world], or give reward.feedback=[FILE or URL]"
    for name, learner in (("reward", recipe.reward), ("dpo", recipe.dpo)):
        if learner is not None and not learner.feedback and recipe.comparisons is None:
            yield f"[{name}] has no comparisons; give {name}.feedback=[FILE or URL], or add [comparisons]"
    for name, policy in (("grpo", recipe.grpo), ("ppo", recipe.ppo)):
        if policy is not None and not policy.prompts and recipe.comparisons is None:
            yield f"[{name}] has no prompts; give {name}.prompts=[FILE.jsonl], or add [comparisons]"
        own_model = recipe.sft is not None and recipe.sft.base is None
        if policy is not None and own_model and policy.max_tokens >= recipe.model.context:
            yield (
                f"{name}.max_tokens is {policy.max_tokens}, which leaves a prompt no room in model.context = "
                f"{recipe.model.context}; lower it"
            )
    if recipe.reward is not None and recipe.reward.epochs == 0 and not recipe.reward.reads_likelihood:
        yield "reward.epochs = 0 leaves a head of chance; set it to 1 or more, or reward.reads_likelihood = true"
    if recipe.ppo is not None and recipe.ppo.minibatches > recipe.ppo.rollouts:
        yield f"ppo.minibatches is {recipe.ppo.minibatches}, more than ppo.rollouts; lower it"
    if recipe.rounds is not None and recipe.ppo is None:
        yield "[rounds] needs a [ppo] table, which is absent; add it, or drop [rounds]"
    if recipe.rounds is not None and recipe.world is not None and recipe.comparisons is None:
        yield "[rounds] in a [world] needs a [comparisons] table, which is absent; add it, or drop [rounds]"
    if recipe.ppo is not None and recipe.reward is None:
        yield "[ppo] needs a [reward] table, which is absent; add it, or drop [ppo]"
    if recipe.grpo is not None and recipe.grpo.reward == "model" and recipe.reward is None:
        yield 'grpo.reward = "model" needs a [reward] table; add it, or set grpo.reward=verifier'
    if recipe.ppo is not None and recipe.ppo.ptx_coefficient and recipe.tokenizer is None:
        yield "ppo.ptx_coefficient needs pretraining text, but there is no [tokenizer]; add it, or set it to 0"
    if recipe.ppo is not None and recipe.ppo.ptx_coefficient and recipe.sft is not None and recipe.sft.base is not None:
        yield (
            "ppo.ptx_coefficient mixes in text that this run's tokenizer encoded, but sft.base has its own tokenizer; "
            "set it to 0"
        )
    for name in ("reward", "dpo", "grpo", "ppo"):
        stage = getattr(recipe, name)
        if stage is not None and stage.optimizer.name != "adamw":
            yield f"{name}.optimizer.name = {stage.optimizer.name}: this stage knows adamw only"


def _eval_misfits(recipe: Recipe, evaluation: EvalSettings) -> Iterator[str]:
    if recipe.pretrain is None and recipe.sft is None:
        yield "[eval] has no model to score; add [pretrain] or [sft], or drop [eval]"
    if evaluation.tasks == []:
        yield "eval.tasks is empty; name tasks, or drop it to ask them all"
    if recipe.world is not None:
        return
    if recipe.tokenizer is None:
        yield "[eval] has no [world] with an exam and no [tokenizer] with held-out text; add one, or drop [eval]"
    if recipe.sft is not None and recipe.sft.base is not None:
        yield (
            "without a [world], [eval] scores text that this run's tokenizer encoded, but sft.base has its own "
            "tokenizer; add [world], or drop [eval] or sft.base"
        )
    if evaluation.tasks is not None:
        yield "eval.tasks names tasks of the exam, but there is no [world] to set one; add [world], or drop eval.tasks"
