"""The [comparisons] stage: the model answers prompts of the world, simulated labelers compare the answers.

In: a model, the world's settings. Out, below the stage's folder: feedback.db (a `FeedbackStore`), policy_prompts.jsonl
(items that nobody has compared, for the policy), items.jsonl (the items of the compared prompts, so that the judge can
be asked) and comparisons.json (what the pool of answers holds, how far labelers agree, and how many of their choices
are the judge's).
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from talaria.errors import UsageError
from talaria.feedback.settings import DATABASE, ComparisonSettings
from talaria.feedback.store import FeedbackStore
from talaria.files import atomic_write, to_json
from talaria.infer.contract import Completion, row_seed
from talaria.infer.engine import Engine
from talaria.report.results import wilson_interval
from talaria.world.labelers import PREFERENCE_VERSION, Labeler, is_good, judge
from talaria.world.practice import practice_items
from talaria.world.settings import WorldSettings


def collect_comparisons(
    settings: ComparisonSettings, world: WorldSettings, engine: Engine, model: str, seed: int, folder: Path
) -> None:
    """Write the stage's four files below `folder`; `model` names the engine's model in the store. A killed try is made
    anew: rows of a store carry the time of their writing, so it cannot be resumed bit for bit."""
    for leftover in folder.glob(f"{DATABASE}*"):
        leftover.unlink()
    items = draw_items(settings, world, seed)
    compared, for_policy = items[: settings.prompts], items[settings.prompts :]
    answers = engine.generate(
        [engine.chat_prompt(item["messages"]) for item in compared],
        n=settings.answers,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=seed,
    )
    pools = [_pool(answers[i : i + settings.answers]) for i in range(0, len(answers), settings.answers)]
    store = FeedbackStore(folder / DATABASE)
    agreed, asked_twice, right, told = 0, 0, 0, 0
    draw = random.Random(seed)
    people = [Labeler(f"labeler-{number}", seed) for number in range(settings.labelers)]
    for number, (item, pool) in enumerate(zip(compared, pools, strict=True)):
        if len(pool) < 2:
            continue
        texts = list(pool)
        prompt = store.append_prompt(item["messages"], source=item["id"])
        sampling = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
        ids = [
            store.append_answer(
                prompt, text, model=model, seed=row_seed(row_seed(seed, number), place), sampling=sampling
            )
            for text, place in pool.items()
        ]
        asked = draw.sample(people, 2 if len(people) > 1 and draw.random() < settings.second_opinions else 1)
        choices = [labeler.compare(item, number, texts) for labeler in asked]
        for labeler, pairs in zip(asked, choices, strict=True):
            for i, j, choice in pairs:
                if gold := judge(item, texts[i], texts[j]):
                    told, right = told + 1, right + (choice == gold)
                ranking = [[ids[i], ids[j]]] if choice == 0 else [[ids[i]], [ids[j]]][::choice]
                store.append_comparison(prompt, ranking, annotator=labeler.name, criterion=objective(item))
        if len(choices) == 2:
            for (i, j, first), (_, _, second) in zip(*choices, strict=True):
                if judge(item, texts[i], texts[j]):
                    asked_twice, agreed = asked_twice + 1, agreed + (first == second)
    store.close()
    _write_rows(folder / "items.jsonl", compared)
    _write_rows(folder / "policy_prompts.jsonl", for_policy)
    summary = _pool_summary(compared, answers, pools, settings.answers) | {
        "preference_version": PREFERENCE_VERSION,
        "model": model,
        "agreement": agreed / asked_twice if asked_twice else None,
        "agreement_interval": wilson_interval(agreed, asked_twice) if asked_twice else None,
        "pairs_asked_twice": asked_twice,
        "choices": told,
        "choices_of_the_judge": right,
    }
    atomic_write(folder / "comparisons.json", to_json(summary))


def draw_items(settings: ComparisonSettings, world: WorldSettings, seed: int) -> list[dict[str, Any]]:
    """The items of the prompts, first those that are compared; UsageError where the world has too few."""
    try:
        return practice_items(world, settings.prompts + settings.policy_prompts, seed)
    except ValueError as error:
        raise UsageError(f"[comparisons]: {error}; ask for fewer prompts, or a larger world") from None


def objective(item: dict[str, Any]) -> str:
    """What a choice between answers to this item is about."""
    return "harmless" if item["grader"] == "refusal" else "helpful"


def _pool(answers: list[Completion]) -> dict[str, int]:
    """The different answers that ended, in the order in which they came, each with its first place."""
    pool: dict[str, int] = {}
    for place, answer in enumerate(answers):
        if answer.finish_reason == "stop":
            pool.setdefault(answer.text, place)
    return pool


def _pool_summary(
    items: list[dict[str, Any]], answers: list[Completion], pools: list[dict[str, int]], n: int
) -> dict[str, Any]:
    """Answers must exist before they can be preferred: how many are right and polite, overall and in compared pools."""
    good = [[is_good(items[i // n], answers[j].text) for j in range(i, i + n)] for i in range(0, len(answers), n)]
    pools_good = [[is_good(item, text) for text in pool] for item, pool in zip(items, pools, strict=True)]
    several = [pool for pool in pools_good if len(pool) > 1]
    return {
        "prompts": len(items),
        "answers": len(answers),
        "answers_cut": sum(answer.finish_reason != "stop" for answer in answers),
        "right_and_polite": sum(map(sum, good)) / len(answers),
        "prompts_compared": len(several),
        "compared_with_a_good_answer": sum(any(pool) for pool in several) / max(1, len(several)),
        "compared_with_good_and_bad": sum(any(pool) and not all(pool) for pool in several) / max(1, len(several)),
    }


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
