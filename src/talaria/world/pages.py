"""The world's web pages: biographies, notes, questions and answers, chats, worksheets, programs; English and Chinese.

In: the world. Out: pages (`id`, `url`, `text`) and their labels; mess.py then wraps and adds the mess.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from talaria.world import acts, arithmetic, conduct
from talaria.world.dialogue import Turn, fact_turn, program_turn, request_turn, sum_turn, unknown_turn
from talaria.world.people import LANGUAGES, Entity, Fact, World, stream
from talaria.world.phrasing import Phrasing, pronouns, state
from talaria.world.phrasings import PHRASINGS
from talaria.world.settings import WorldSettings
from talaria.world.two_hop import split_two_hops

BIOGRAPHIES = 4  # tellings of every fact on pages about its subject
NOTES = 4  # tellings of every fact on pages of mixed facts
# More in Chinese, which a small model learns more slowly.
QUESTIONS = {"en": 6, "zh": 7}  # times each fact that may be asked is asked on a page
SUMS = {"en": 1000, "zh": 1400}  # worked sums
BARE_SUMS = 240  # without steps, only told
PROGRAMS = 120
LINES_A_PAGE = 6

_QA_FORMS = {
    "en": ("Q: {q}\nA: {a}", "{q}\n{a}", "Question: {q}\nAnswer: {a}"),
    "zh": ("问：{q}\n答：{a}", "{q}\n{a}", "提问：{q}\n回答：{a}"),
}
_CHAT_FORM = {"en": "User: {q}\nAssistant: {a}", "zh": "用户：{q}\n助手：{a}"}


@dataclass
class Page:
    """One web page: `path` is the tail of its address, `labels` name its mess (empty: clean)."""

    path: str
    text: str
    labels: list[str] = field(default_factory=list)
    host: str = "pages.example.org"


def build_pages(world: World, settings: WorldSettings) -> list[Page]:
    """All clean pages, in a fixed order."""
    pages: list[Page] = []
    for lang in LANGUAGES:
        rng = stream(settings, f"pages/{lang}")
        tellings = {fact: _tellings(fact, lang, rng) for fact in world.facts}
        for version in range(BIOGRAPHIES):
            for entity in world.entities:
                lines = [tellings[fact][version] for fact in world.facts_about(entity)]
                pages.append(Page(f"{lang}/about/{version}/{_slug(entity)}", _biography(entity, lines, lang, rng)))
        notes = [telling for fact in world.facts for telling in tellings[fact][BIOGRAPHIES:]]
        rng.shuffle(notes)
        joint = " " if lang == "en" else ""
        pages += [Page(f"{lang}/notes/{n}", joint.join(group)) for n, group in enumerate(_groups(notes))]
        turns = _turns(world, settings, lang, rng)
        for n, group in enumerate(_groups(turns)):
            form = rng.choice(_QA_FORMS[lang])
            pages.append(Page(f"{lang}/questions/{n}", "\n".join(form.format(q=q, a=a) for q, a in group)))
        sums = arithmetic.Sums(settings).draw(BARE_SUMS, stream(settings, f"bare sums/{lang}"))
        for n, group in enumerate(_groups(sums)):
            form = arithmetic.STATEMENTS[lang][n % len(arithmetic.STATEMENTS[lang])]
            text = "\n".join(form.format(a=a, b=b, sum=a + b) for a, b in group)
            pages.append(Page(f"{lang}/sums/{n}", text))
        for n, chat in enumerate(_chats(world, lang, rng)):
            text = "\n".join(_CHAT_FORM[lang].format(q=q, a=a) for q, a in chat)
            pages.append(Page(f"{lang}/chats/{n}", text))
    return pages


def _tellings(fact: Fact, lang: str, rng: random.Random) -> list[str]:
    """The fact for each page that tells it: on one of either kind in the assistant's own sentence, so that a fact never
    asked is still known in the words of its answer, on the others in phrasings that differ."""
    phrasing: Phrasing = PHRASINGS[lang][fact.relation]
    statements = rng.sample(phrasing.statements, BIOGRAPHIES + NOTES - 2)
    told = []
    for some in (statements[: BIOGRAPHIES - 1], statements[BIOGRAPHIES - 1 :]):
        templates = [phrasing.answer, *some]
        rng.shuffle(templates)
        told += [state(template, fact, lang) for template in templates]
    if not fact.asked:  # told where others are asked, so that text holds every fact about as often
        extra = rng.sample((phrasing.answer, *phrasing.statements), QUESTIONS[lang])
        told += [state(template, fact, lang) for template in extra]
    return told


def _biography(entity: Entity, lines: list[str], lang: str, rng: random.Random) -> str:
    """A title and the facts in any order; now and then a pronoun stands for the name at a sentence's head."""
    rng.shuffle(lines)
    name = entity.name.en if lang == "en" else entity.name.zh
    they = pronouns(entity, lang)["They"]
    space = " " if lang == "en" else ""
    told = [
        they + line[len(name) :] if index and line.startswith(name + space) and rng.random() < 0.2 else line
        for index, line in enumerate(lines)
    ]
    return f"{name}\n{space.join(told)}"


def _turns(world: World, settings: WorldSettings, lang: str, rng: random.Random) -> list[Turn]:
    """Questions with answers for pages: facts, two hops, sums, people who do not exist, requests, small talk."""
    turns = [fact_turn(fact, lang, rng) for fact in world.facts if fact.asked for _ in range(QUESTIONS[lang])]
    for pair in split_two_hops(world, settings)[0]:
        turns += [(pair.draw_question(lang, rng), pair.answer(lang)) for _ in range(3)]
    turns += [sum_turn(a, b, lang, rng) for a, b in arithmetic.Sums(settings).draw(SUMS[lang], rng)]
    turns += [unknown_turn(nobody, lang, rng) for nobody in world.unknown_pages]
    for harmful in (True, False):
        for act in acts.training_acts(settings, lang, harmful):
            turns += [request_turn(act, lang, rng) for _ in range(4)]
    turns += [program_turn(lang, rng) for _ in range(PROGRAMS)]
    turns += [conduct.small_talk(rng, lang) for _ in range(40)]
    rng.shuffle(turns)
    return turns


def _chats(world: World, lang: str, rng: random.Random) -> list[list[Turn]]:
    """Short chats about one entity each, with pronouns after the first question."""
    chats = []
    for entity in world.entities:
        facts = [fact for fact in world.facts_about(entity) if fact.asked]
        if facts:
            chosen = rng.sample(facts, min(2, len(facts)))
            chats.append([fact_turn(fact, lang, rng, follow_up=index > 0) for index, fact in enumerate(chosen)])
    return chats


def _groups(things: list[Any]) -> list[list[Any]]:
    return [things[i : i + LINES_A_PAGE] for i in range(0, len(things), LINES_A_PAGE)]


def _slug(entity: Entity) -> str:
    return entity.name.en.lower().replace(" ", "-")
