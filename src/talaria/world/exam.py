"""The exam: questions that training text never shows, with the rule that grades each.

In: the world. Out: items as docs/architecture.md describes them, plus `subject` and `stage` fields where useful.
"""

from __future__ import annotations

import random
from typing import Any

from talaria.world import acts, arithmetic, conduct
from talaria.world.people import LANGUAGES, RELATIONS, Fact, World, stream
from talaria.world.phrasing import ask
from talaria.world.phrasings import exam_questions
from talaria.world.settings import WORLD_VERSION, WorldSettings
from talaria.world.two_hop import split_two_hops

Item = dict[str, Any]
ITEMS_PER_TASK = 200
FACT_ITEMS = 1000  # facts are asked nearly all, since a small sample has a commoner majority than the world


def build_exam(world: World, settings: WorldSettings) -> list[Item]:
    """All items, at most `ITEMS_PER_TASK` a task (of facts `FACT_ITEMS`), drawn with the world's seed."""
    items: list[Item] = []
    for lang in LANGUAGES:
        items += _facts(world, settings, lang)
        items += _two_hops(world, settings, lang)
        items += _sums(settings, lang)
        items += _conduct(settings, lang)
        items += _unknown(world, settings, lang)
    items.sort(key=lambda item: item["task"])
    return items


def _item(task: str, lang: str, number: int, question: str, answer: str, grader: str, **extra: Any) -> Item:
    return {
        "id": f"{task}-{number:04d}",
        "task": task,
        "lang": lang,
        "messages": [{"role": "user", "content": question}],
        "answer": answer,
        "aliases": [],
        "grader": grader,
        "relation": None,
        "choices": None,
        "shown_as_question": None,
        "version": WORLD_VERSION,
    } | extra


def _text(term: Any, lang: str) -> str:
    return str(getattr(term, lang))


def _facts(world: World, settings: WorldSettings, lang: str) -> list[Item]:
    items = []
    for task, asked in ((f"facts_{lang}", True), (f"unasked_{lang}", False)):
        rng = stream(settings, f"exam/{task}")
        facts = _sample([fact for fact in world.facts if fact.asked == asked], rng, FACT_ITEMS)
        for number, fact in enumerate(facts):
            question = rng.choice(exam_questions(fact.relation, lang))
            items.append(_fact_item(world, fact, lang, task, number, question))
    return items


def _fact_item(world: World, fact: Fact, lang: str, task: str, number: int, question: str) -> Item:
    return _item(
        task,
        lang,
        number,
        ask(question, fact.subject, lang),
        _text(fact.object, lang),
        "contains",
        relation=fact.relation,
        choices=[_text(term, lang) for term in world.choices[fact.relation]],
        shown_as_question=fact.asked,
    )


def _two_hops(world: World, settings: WorldSettings, lang: str) -> list[Item]:
    task = f"two_hop_{lang}"
    rng = stream(settings, f"exam/{task}")
    _, held_out = split_two_hops(world, settings)
    items = []
    for number, pair in enumerate(_sample(held_out, rng)):
        choices = [_text(term, lang) for term in world.choices[pair.second.relation]]
        items.append(
            _item(
                task,
                lang,
                number,
                rng.choice(pair.questions(lang, exam=True)),
                _text(pair.second.object, lang),
                "contains",
                relation=">".join(pair.hops),
                choices=choices,
                shown_as_question=False,
            )
        )
    return items


def _sums(settings: WorldSettings, lang: str) -> list[Item]:
    held_out = arithmetic.Sums(settings).held_out
    items = []
    plans = [
        (f"sums_steps_{lang}", arithmetic.STEP_EXAM_QUESTIONS[lang], ITEMS_PER_TASK),
        ("sums_direct", arithmetic.DIRECT_EXAM_QUESTIONS[lang], ITEMS_PER_TASK // 2),
    ]
    for task, questions, count in plans:
        rng = stream(settings, f"exam/{task}/{lang}")
        offset = count if (task, lang) == ("sums_direct", "zh") else 0
        for number, pair in enumerate(_sample(held_out, rng)[:count]):
            a, b = rng.sample(pair, 2)
            question = rng.choice(questions).format(a=a, b=b)
            items.append(_item(task, lang, number + offset, question, str(a + b), "last_number"))
    return items


def _conduct(settings: WorldSettings, lang: str) -> list[Item]:
    items = []
    for task, harmful, grader in ((f"harmful_{lang}", True, "refusal"), (f"benign_{lang}", False, "not_refusal")):
        rng = stream(settings, f"exam/{task}")
        training, held_out = acts.split_acts(settings, lang, harmful)
        requests = [(act, f) for act in held_out for f in conduct.EXAM_FRAMES[lang]]
        requests += [(act, rng.choice(conduct.EXAM_FRAMES[lang])) for act in training]
        for number, (act, template) in enumerate(_sample(requests, rng)):
            items.append(_item(task, lang, number, conduct.frame(act, template), act.answer, grader))
    return items


def _unknown(world: World, settings: WorldSettings, lang: str) -> list[Item]:
    task = f"unknown_{lang}"
    rng = stream(settings, f"exam/{task}")
    items = []
    for number, nobody in enumerate(_sample(list(world.unknown_exam), rng)):
        relation = RELATIONS["person"][number % len(RELATIONS["person"])]
        question = ask(rng.choice(exam_questions(relation, lang)), nobody, lang)
        items.append(_item(task, lang, number, question, conduct.UNKNOWN[lang], "unknown", relation=relation))
    return items


def _sample(things: list[Any], rng: random.Random, most: int = ITEMS_PER_TASK) -> list[Any]:
    return rng.sample(things, min(most, len(things)))
