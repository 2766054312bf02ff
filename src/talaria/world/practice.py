"""Questions as training asks them, with the rule that grades each: prompts for comparisons and policies.

In: `WorldSettings`. Out: items of the exam's form (docs/architecture.md), drawn anew from the facts, sums, pairs and
acts that conversations may ask, in the training phrasings; people who do not exist have names of their own, which
fine-tuning has not answered. Nothing that the exam holds out is among them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from talaria.world import acts, arithmetic, conduct
from talaria.world.dialogue import fact_turn, request_turn, sum_turn, unknown_turn
from talaria.world.framing import led_in
from talaria.world.people import LANGUAGES, Fact, World, build_world, stream
from talaria.world.settings import WORLD_VERSION, WorldSettings
from talaria.world.two_hop import split_two_hops

Item = dict[str, Any]
# Of ten prompts, in each language: facts and pairs of facts are what small models get wrong most often.
_MIX = ("facts",) * 4 + ("two_hop",) * 2 + ("sums", "unknown", "harmful", "benign")


def practice_items(settings: WorldSettings, count: int, seed: int) -> list[Item]:
    """`count` items with different questions, the languages in turn. Raises ValueError where the world is too small."""
    world = build_world(settings)
    rng = stream(settings, f"practice/{seed}")
    makers = {lang: _makers(world, settings, lang, rng) for lang in LANGUAGES}
    items: list[Item] = []
    asked: set[str] = set()
    for draw in range(50 * count):
        lang = LANGUAGES[draw % len(LANGUAGES)]
        task = rng.choice(_MIX)
        question, values = makers[lang][task]()
        if question in asked:
            continue
        asked.add(question)
        items.append(
            {
                "id": f"practice-{seed}-{len(items):05d}",
                "task": f"{task}_{lang}",
                "lang": lang,
                "messages": [{"role": "user", "content": question}],
                "aliases": [],
                "relation": None,
                "choices": None,
                "shown_as_question": True,
                "version": WORLD_VERSION,
            }
            | values
        )
        if len(items) == count:
            return items
    raise ValueError(f"a world of {settings.entities} entities has only {len(items)} of {count} different questions")


def _makers(
    world: World, settings: WorldSettings, lang: str, rng: random.Random
) -> dict[str, Callable[[], tuple[str, Item]]]:
    """Task -> what draws a question, its answer and its grader."""
    facts = [fact for fact in world.facts if fact.asked]
    pairs, sums = split_two_hops(world, settings)[0], arithmetic.Sums(settings).training
    requests = {harmful: acts.training_acts(settings, lang, harmful) for harmful in (True, False)}

    def choices(fact: Fact) -> list[str]:
        return [str(getattr(term, lang)) for term in world.choices[fact.relation]]

    def a_fact() -> tuple[str, Item]:
        fact = rng.choice(facts)
        answer = str(getattr(fact.object, lang))
        values = {"answer": answer, "grader": "contains", "relation": fact.relation, "choices": choices(fact)}
        return fact_turn(fact, lang, rng)[0], values

    def two_hop() -> tuple[str, Item]:
        pair = rng.choice(pairs)
        answer = str(getattr(pair.second.object, lang))
        values = {"grader": "contains", "relation": ">".join(pair.hops), "choices": choices(pair.second)}
        return led_in(pair.draw_question(lang, rng), lang, rng), {"answer": answer} | values

    def a_sum() -> tuple[str, Item]:
        a, b = rng.choice(sums)
        return sum_turn(a, b, lang, rng)[0], {"answer": str(a + b), "grader": "last_number"}

    def unknown() -> tuple[str, Item]:
        question, _ = unknown_turn(rng.choice(world.unknown_practice), lang, rng)
        return question, {"answer": conduct.UNKNOWN[lang], "grader": "unknown"}

    def request(harmful: bool) -> tuple[str, Item]:
        question, answer = request_turn(rng.choice(requests[harmful]), lang, rng)
        return question, {"answer": answer, "grader": "refusal" if harmful else "not_refusal"}

    return {
        "facts": a_fact,
        "two_hop": two_hop,
        "sums": a_sum,
        "unknown": unknown,
        "harmful": lambda: request(True),
        "benign": lambda: request(False),
    }
