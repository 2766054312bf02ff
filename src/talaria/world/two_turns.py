"""Questions of two turns: the second one names its subject by a pronoun, so that it needs the first.

In: a world. Out: items of the exam's form (docs/architecture.md) whose messages are the exam's question about one fact,
its right answer, and the exam's question about another fact of the same subject. Both facts may be asked; neither frame
occurs in training. They are no part of exam.jsonl and carry a version of their own.
"""

from __future__ import annotations

from typing import Any

from talaria.world.people import LANGUAGES, Fact, build_world, stream
from talaria.world.phrasing import ask, state
from talaria.world.phrasings import PHRASINGS, exam_questions
from talaria.world.settings import WorldSettings

TWO_TURNS_VERSION = "1"  # of the section "Two turns" in docs/world.md


def two_turn_items(settings: WorldSettings, count: int) -> list[dict[str, Any]]:
    """At most `count` items a language, of different subjects, drawn with the world's seed."""
    world = build_world(settings)
    items: list[dict[str, Any]] = []
    for lang in LANGUAGES:
        rng = stream(settings, f"two turns/{lang}")
        asked = [[fact for fact in world.facts_about(entity) if fact.asked] for entity in world.entities]
        several = [facts for facts in asked if len(facts) >= 2]
        for number, facts in enumerate(rng.sample(several, min(count, len(several)))):
            first, second = rng.sample(facts, 2)
            question = ask(rng.choice(exam_questions(first.relation, lang)), first.subject, lang)
            follow_up = _with_pronoun(rng.choice(exam_questions(second.relation, lang)), second, lang)
            items.append(
                {
                    "id": f"dialogue_{lang}-{number:04d}",
                    "task": f"dialogue_{lang}",
                    "lang": lang,
                    "messages": [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": state(PHRASINGS[lang][first.relation].answer, first, lang)},
                        {"role": "user", "content": follow_up},
                    ],
                    "answer": str(getattr(second.object, lang)),
                    "aliases": [],
                    "grader": "contains",
                    "relation": second.relation,
                    "choices": [str(getattr(term, lang)) for term in world.choices[second.relation]],
                    "shown_as_question": True,
                    "version": TWO_TURNS_VERSION,
                }
            )
    return items


def _with_pronoun(question: str, fact: Fact, lang: str) -> str:
    """The exam's question with "her job" where it has "the job of {s}"."""
    noun_phrase = PHRASINGS[lang][fact.relation].noun_phrase
    owned = noun_phrase.replace("{s}", "{they}")
    if lang == "en":
        owned = "{their} " + noun_phrase.removeprefix("the ").removesuffix(" of {s}")
    assert noun_phrase in question
    return ask(question.replace(noun_phrase, owned), fact.subject, lang)
