"""A recipe in, UserError out where a late stage is bound to fail: better before hours of training than after.

recipe.py tells what the tables alone can tell. Here the files that they name are read, and, once there is a tokenizer,
the texts of the later stages.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from talaria.errors import UsageError, UserError
from talaria.recipe import Recipe, run_path
from talaria.report.run_data import STAGES, TUNED
from talaria.run import is_finished

if TYPE_CHECKING:
    from talaria.eval.prompts import Strategy
    from talaria.tokens.tokenizer import Tokenizer


def check_sources(recipe: Recipe, origin: Path, until: str | None) -> None:
    """Before the first stage: files, base model and tasks that stages up to `until` will ask for. `origin` is the
    recipe's file."""
    if recipe.corpus is not None:
        from talaria.corpus.document import HUB
        from talaria.corpus.files import find_files

        find_files([name for name in recipe.corpus.paths if not name.startswith(HUB)])
    if recipe.sft is not None and _comes("sft", until):
        from talaria.tokens.conversations import read_conversations

        for file in recipe.sft.conversations:
            read_conversations(file)
    _check_alignment(recipe, until)
    for name in ("reward", "dpo", "grpo", "ppo"):
        settings = getattr(recipe, name)
        if settings is None or not _comes(name, until):
            continue
        given = [*getattr(settings, "feedback", []), *getattr(settings, "prompts", [])]
        if recipe.rounds is not None and recipe.world is None and recipe.reward is not None:
            # Where people's choices come round by round, the round that waits for them says so.
            given = [place for place in given if place not in recipe.reward.feedback]
        for place in given:
            if "://" not in place and not Path(place).exists():
                raise UserError(f"{origin}: [{name}] reads {place}, which is missing; check the path")
    if recipe.eval is not None and recipe.eval.tasks is not None and recipe.world is not None:
        from talaria.world.exam import build_exam
        from talaria.world.people import build_world

        known = sorted({item["task"] for item in build_exam(build_world(recipe.world), recipe.world)})
        for task in recipe.eval.tasks:
            if task not in known:
                raise UsageError(f"{origin}: eval.tasks: no task {task!r} in the exam; it has {', '.join(known)}")


def _check_alignment(recipe: Recipe, until: str | None) -> None:
    """Enough questions in the world; a given base model, and room for answers in its context."""
    at, base = run_path(recipe), recipe.sft.base if recipe.sft is not None else None
    coming = [name for name in TUNED if getattr(recipe, name) is not None and _comes(name, until)]
    if "comparisons" in coming and not is_finished(at / "comparisons"):
        _world_items(recipe)
    if base is not None and (coming or (_comes("sft", until) and not is_finished(at / "sft"))):
        tokenizer, context = _read_base(base)
        _check_rollouts(recipe, coming, tokenizer, context)


def _comes(stage: str, until: str | None) -> bool:
    if until == "rounds":  # which come after every policy
        return stage != "eval"
    return until is None or STAGES.index(stage) <= STAGES.index(until)


def _world_items(recipe: Recipe) -> list[dict[str, Any]]:
    """The prompts of [comparisons], those compared and the policy's; UsageError where the world has too few."""
    from talaria.feedback.comparisons import draw_items

    assert recipe.comparisons is not None and recipe.world is not None
    later = recipe.rounds.prompts if recipe.rounds is not None else None
    if later is not None and later > recipe.comparisons.prompts:
        draw_items(recipe.comparisons.model_copy(update={"prompts": later}), recipe.world, recipe.run.seed)
    return draw_items(recipe.comparisons, recipe.world, recipe.run.seed)


def _check_rollouts(recipe: Recipe, coming: list[str], tokenizer: Tokenizer, context: int) -> None:
    """Some prompt of each policy leaves room for `max_tokens` in the context, and every prompt that is compared for
    a token."""
    from talaria.tokens.chat import encode_chat
    from talaria.train.rollouts import read_prompts

    if "comparisons" in coming:
        asked = [
            encode_chat(tokenizer, item["messages"], add_generation_prompt=True).ids for item in _world_items(recipe)
        ]
        longest, shortest = max(map(len, asked)), min(map(len, asked))
        if longest >= context:
            raise UsageError(
                f"the context is {context} tokens, and a prompt of [comparisons] takes {longest}; take a longer one"
            )
    for name in ("grpo", "ppo"):
        settings = getattr(recipe, name)
        if name not in coming:
            continue
        room, files = context - settings.max_tokens, [Path(file) for file in settings.prompts]
        if files:
            if all(file.is_file() for file in files):  # not so for a stage that this command does not come to
                read_prompts(files, tokenizer, room)
        elif shortest > room:
            raise UsageError(
                f"{name}.max_tokens is {settings.max_tokens}, and the context of {context} tokens then has no room "
                f"for a prompt, of which the shortest takes {shortest}; lower {name}.max_tokens"
            )


def _read_base(base: str) -> tuple[Tokenizer, int]:
    """Tokenizer and context of a model that can be read there, and whose chat template can be trained."""
    from talaria.model.checkpoint import load_model
    from talaria.tokens.chat import encode_chat

    try:
        model, tokenizer = load_model(base)
        encode_chat(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    except UserError as error:
        raise UserError(f"sft.base={base}: {error}") from None
    return tokenizer, model.shape.context


def check_texts(recipe: Recipe) -> None:
    """Before pretraining: this run's tokenizer knows the characters of the conversations and the exam, and the model's
    context holds every question of the exam with its answer."""
    from talaria.tokens.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(run_path(recipe) / "tokenizer" / "tokenizer")
    try:
        _check_conversations(recipe, tokenizer)
        needed = _positions_of_exam(recipe, tokenizer)
    except UserError as error:
        is_character = recipe.tokenizer is not None and recipe.tokenizer.kind == "character"
        raise UserError(
            f"conversations or exam: {error}{'; or set tokenizer.kind=bpe' if is_character else ''}"
        ) from None
    if needed > recipe.model.context:
        raise UsageError(
            f"model.context is {recipe.model.context}, but a question of the exam with its answer takes "
            f"{needed} tokens; set model.context={needed} or more"
        )
    if recipe.sft is not None and recipe.sft.base is None:
        coming = [name for name in TUNED if getattr(recipe, name) is not None]
        _check_rollouts(recipe, coming, tokenizer, recipe.model.context)


def _check_conversations(recipe: Recipe, tokenizer: Tokenizer) -> None:
    from talaria.tokens.conversations import read_conversations

    if recipe.sft is None or recipe.sft.base is not None:
        return
    files = [Path(file) for file in recipe.sft.conversations]
    for stage, table in (("world", recipe.world), ("conversations", recipe.conversations)):
        if table is not None:
            files.append(run_path(recipe) / stage / "conversations.jsonl")
    for file in files:
        for conversation in read_conversations(file):
            for message in conversation:
                tokenizer.encode(message["content"])


def _positions_of_exam(recipe: Recipe, tokenizer: Tokenizer) -> int:
    """The most positions that a question takes with the longest answer that is scored after it."""
    from talaria.eval.items import choose_items, ranked_choices, read_items
    from talaria.eval.prompts import likelihood_pair

    if recipe.eval is None or recipe.world is None:
        return 0
    exam = read_items(run_path(recipe) / "world" / "exam.jsonl")
    strategies: list[Strategy] = ["plain"] if recipe.sft is None or recipe.sft.base is not None else ["plain", "chat"]
    needed = 0
    for items in choose_items(exam, recipe.eval.tasks, recipe.eval.limit_per_task).values():
        for item in items:
            choices = ranked_choices(item, recipe.eval.max_choices) if recipe.eval.likelihood_per_task != 0 else []
            answers = [item.answer, *choices]
            longest = max(answers, key=lambda text: len(tokenizer.encode(text)))
            for strategy in strategies:
                prompt, answer = likelihood_pair(tokenizer, item, longest, strategy)
                needed = max(needed, len(prompt) + len(answer) - 1)  # the last token is never read
    return needed
