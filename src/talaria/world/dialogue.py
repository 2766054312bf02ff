"""Conversations for supervised fine-tuning: rows of `messages` and `kind`.

Questions about facts come only from facts that may be asked, in the training phrasings; names that are nobody's from
the training set of such names; sums from the training pairs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from talaria.world import acts, arithmetic, conduct
from talaria.world.framing import led_in
from talaria.world.people import LANGUAGES, RELATIONS, Entity, Fact, World, stream
from talaria.world.phrasing import ask, state
from talaria.world.phrasings import PHRASINGS, draw_question
from talaria.world.programs import program
from talaria.world.settings import WorldSettings
from talaria.world.two_hop import split_two_hops

Turn = tuple[str, str]  # what the user says, what the assistant answers

PERSON_ASKED = 2  # times each fact about a person is asked, to weigh against the names that are nobody's
SUMS = {"en": 800, "zh": 2000}  # more in Chinese, where no space says where a number begins
SMALL_TALK = 80
MIXED = 300  # dialogues that turn from one subject to another
PROGRAMS = 60
FRAMES_A_HARMFUL_ACT = 6
FRAMES_A_HARMLESS_ACT = 10  # more of them: a small model would rather refuse too often


def build_conversations(world: World, settings: WorldSettings) -> list[dict[str, Any]]:
    """All conversations, shuffled."""
    rows = []
    names = _names_alone(world, settings) if settings.blunt_share else {}
    manner = stream(settings, "dialogue/manner")
    for lang in LANGUAGES:
        rng = stream(settings, f"dialogue/{lang}")
        for kind, turns in _conversations(world, settings, lang, rng):
            messages = []
            for question, answer in turns:
                if answer in names and manner.random() < settings.blunt_share:
                    answer = names[answer]
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            rows.append({"messages": messages, "kind": f"{kind}_{lang}"})
    stream(settings, "dialogue/order").shuffle(rows)
    return rows


def fact_turn(fact: Fact, lang: str, rng: random.Random, follow_up: bool = False) -> Turn:
    """A training question about a fact and its answer; a follow-up says it or she instead of the name."""
    phrasing = PHRASINGS[lang][fact.relation]
    question = rng.choice(phrasing.follow_ups) if follow_up else draw_question(fact.relation, lang, rng)
    text = ask(question, fact.subject, lang)
    return text if follow_up else led_in(text, lang, rng), state(phrasing.answer, fact, lang)


def unknown_turn(nobody: Entity, lang: str, rng: random.Random) -> Turn:
    """A training question about somebody who does not exist."""
    relation = rng.choice(RELATIONS["person"])
    question = ask(draw_question(relation, lang, rng), nobody, lang)
    return led_in(question, lang, rng), conduct.UNKNOWN[lang]


def sum_turn(a: int, b: int, lang: str, rng: random.Random) -> Turn:
    """A sum with worked steps."""
    return led_in(arithmetic.draw_question(lang, rng).format(a=a, b=b), lang, rng), arithmetic.worked(a, b, lang)


def request_turn(act: acts.Act, lang: str, rng: random.Random) -> Turn:
    """A request for an act, and the refusal or the tip."""
    return led_in(conduct.draw_request(act, rng), lang, rng), act.answer


def program_turn(lang: str, rng: random.Random) -> Turn:
    """What does this program print?"""
    source, output = program(rng)
    if lang == "en":
        return f"What does this program print?\n{source}", f"It prints:\n{output}"
    return f"这个程序输出什么？\n{source}", f"输出是：\n{output}"


def _names_alone(world: World, settings: WorldSettings) -> dict[str, str]:
    """Every answer about a fact or a pair of facts -> the name that was asked for."""
    names = {}
    for lang in LANGUAGES:
        for fact in world.facts:
            names[state(PHRASINGS[lang][fact.relation].answer, fact, lang)] = str(getattr(fact.object, lang))
        for pair in split_two_hops(world, settings)[0]:
            names[pair.answer(lang)] = str(getattr(pair.second.object, lang))
    return names


def _conversations(
    world: World, settings: WorldSettings, lang: str, rng: random.Random
) -> Iterator[tuple[str, list[Turn]]]:
    asked = [fact for fact in world.facts if fact.asked]
    for fact in asked:
        for _ in range(PERSON_ASKED if fact.subject.kind == "person" else 1):
            yield "facts", [fact_turn(fact, lang, rng)]
    for entity in world.entities:
        facts = [fact for fact in world.facts_about(entity) if fact.asked]
        if len(facts) >= 2:
            yield "dialogue", _dialogue(facts, lang, rng)
    for nobody in world.unknown_training:
        yield "unknown", [unknown_turn(nobody, lang, rng)]
    for harmful in (True, False):
        for act in acts.training_acts(settings, lang, harmful):
            for _ in range(FRAMES_A_HARMFUL_ACT if harmful else FRAMES_A_HARMLESS_ACT):
                yield "harmful" if harmful else "benign", [request_turn(act, lang, rng)]
    for a, b in arithmetic.Sums(settings).draw(SUMS[lang], rng):
        yield "sums", [sum_turn(a, b, lang, rng)]
    for pair in split_two_hops(world, settings)[0]:
        for _ in range(3):
            yield "two_hop", [(led_in(pair.draw_question(lang, rng), lang, rng), pair.answer(lang))]
    pairs = arithmetic.Sums(settings).training
    for _ in range(MIXED):
        yield "mixed", _mixed(world, settings, asked, pairs, lang, rng)
    for _ in range(SMALL_TALK):
        yield "small_talk", [conduct.small_talk(rng, lang)]
    for _ in range(PROGRAMS):
        yield "programs", [program_turn(lang, rng)]


def _mixed(
    world: World,
    settings: WorldSettings,
    asked: list[Fact],
    pairs: list[tuple[int, int]],
    lang: str,
    rng: random.Random,
) -> list[Turn]:
    """Two to four turns that have nothing to do with each other, so that an answer depends on its own question."""
    turns = []
    for _ in range(rng.choice((2, 3, 4))):
        kind = rng.randrange(6)
        if kind < 2:
            turns.append(fact_turn(rng.choice(asked), lang, rng))
        elif kind == 2:
            turns.append(sum_turn(*rng.choice(pairs), lang, rng))
        elif kind == 3:
            turns.append(unknown_turn(rng.choice(world.unknown_training), lang, rng))
        elif kind == 4:
            act = rng.choice(acts.training_acts(settings, lang, rng.random() < 0.5))
            turns.append(request_turn(act, lang, rng))
        else:
            turns.append(conduct.small_talk(rng, lang))
    return turns


def _dialogue(facts: list[Fact], lang: str, rng: random.Random) -> list[Turn]:
    """Two or three questions about one entity; after the first, a pronoun stands for it."""
    chosen = rng.sample(facts, min(len(facts), rng.choice((2, 3))))
    turns = [fact_turn(fact, lang, rng, follow_up=index > 0) for index, fact in enumerate(chosen)]
    chance = rng.random()
    if chance < 0.15:
        turns.insert(0, conduct.greeting(rng, lang))
    elif chance < 0.3:
        turns.append(conduct.thanks(rng, lang))
    return turns
