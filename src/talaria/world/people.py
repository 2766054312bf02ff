"""The world's truths: people, cities, works and events, and the facts about them, from a seed.

In: `WorldSettings`. Out: `World`, whose `facts` hold (subject, relation, object) in both languages. About 4.5 facts an
entity; every relation's values are spread evenly, so that guessing the commonest value scores below 15 %.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from talaria.world import vocabulary as words
from talaria.world.names import (
    CITY_ENDS,
    COUNTRY_ENDS,
    EVENT_ENDS,
    FEMALE_NAMES,
    MALE_NAMES,
    RIVER_ENDS,
    SURNAME_ENDS,
    Namer,
)
from talaria.world.settings import WorldSettings
from talaria.world.vocabulary import Term

LANGUAGES = ("en", "zh")

# Every relation by the kind of its subject. Phrasings are in phrasings_en.py and phrasings_zh.py.
RELATIONS: dict[str, tuple[str, ...]] = {
    "person": ("birthplace", "job", "instrument", "pet", "food", "colour"),
    "city": ("country", "product", "river"),
    "work": ("author", "kind", "work_year"),
    "event": ("venue", "prize", "event_year"),
}
UNASKED_SHARE = 0.18  # of each relation's facts, only ever stated, never asked and answered


@dataclass(frozen=True)
class Entity:
    """Something with a name. `female` matters for people only: it picks the pronoun."""

    kind: str
    name: Term
    female: bool = False


@dataclass(frozen=True)
class Fact:
    """One truth. `asked` is false where training text may state it but never as question and answer."""

    subject: Entity
    relation: str
    object: Term
    asked: bool


@dataclass(frozen=True)
class World:
    """All that is true, and the names that are nobody's."""

    entities: tuple[Entity, ...]
    facts: tuple[Fact, ...]
    choices: dict[str, tuple[Term, ...]]  # relation -> the values it takes
    unknown_pages: tuple[Entity, ...]  # nobody: asked about on pages
    unknown_training: tuple[Entity, ...]  # nobody: asked about in fine-tuning, those of the pages among them
    unknown_exam: tuple[Entity, ...]  # nobody: asked about in the exam only
    unknown_practice: tuple[Entity, ...]  # nobody: asked about in prompts of comparisons and policies only

    @cached_property
    def _by_subject(self) -> dict[str, dict[str, Fact]]:
        index: dict[str, dict[str, Fact]] = {}
        for fact in self.facts:
            index.setdefault(fact.subject.name.en, {})[fact.relation] = fact
        return index

    def facts_about(self, entity: Entity) -> list[Fact]:
        """The entity's facts, in the order of `RELATIONS`."""
        return list(self._by_subject[entity.name.en].values())

    def fact(self, subject_en: str, relation: str) -> Fact:
        """The one fact with this English subject and relation."""
        return self._by_subject[subject_en][relation]


def stream(settings: WorldSettings, part: str) -> random.Random:
    """A random generator of its own for each part, so that a change in one part leaves the others as they were."""
    return random.Random(f"{settings.seed}/{settings.entities}/{part}")


def build_world(settings: WorldSettings) -> World:
    """Invent the entities, give each its facts, and set aside names that are nobody's."""
    rng = stream(settings, "people")
    n_people = settings.entities // 2
    n_cities = settings.entities // 6
    n_works = settings.entities // 5
    n_events = settings.entities - n_people - n_cities - n_works
    n_unknown_training = 300 + n_people * 3
    n_unknown_exam = 200

    namer = Namer(rng)
    cities = namer.take(CITY_ENDS, n_cities)
    countries = namer.take(COUNTRY_ENDS, 14)
    rivers = namer.take(RIVER_ENDS, 16)
    event_names = namer.take(EVENT_ENDS, n_events)
    surnames = namer.take(SURNAME_ENDS, n_people + n_unknown_training + n_unknown_exam)
    persons = [_person(surname, rng) for surname in surnames]
    people, nobody = persons[:n_people], persons[n_people:]
    works = [Entity("work", name) for name in _titles(n_works, rng)]
    events = [Entity("event", name) for name in event_names]
    towns = [Entity("city", name) for name in cities]

    years = [Term(str(year), str(year)) for year in sorted(rng.sample(range(1701, 1990), 40))]
    values: dict[str, list[Term]] = {
        "birthplace": cities,
        "job": list(words.JOBS),
        "instrument": list(words.INSTRUMENTS),
        "pet": list(words.PETS),
        "food": list(words.FOODS),
        "colour": list(words.COLOURS),
        "country": countries,
        "product": list(words.PRODUCTS),
        "river": rivers,
        "author": [person.name for person in people],
        "kind": list(words.KINDS_OF_WORK),
        "work_year": years[:20],
        "venue": cities,
        "prize": list(words.PRIZES),
        "event_year": years[20:],
    }
    facts: dict[tuple[str, str], Fact] = {}
    by_kind = {"person": people, "city": towns, "work": works, "event": events}
    for kind, relations in RELATIONS.items():
        subjects = by_kind[kind]
        for relation in relations:
            objects = _spread(values[relation], len(subjects), rng)
            unasked = _spread_sample(objects, round(UNASKED_SHARE * len(subjects)), rng)
            for index, (subject, value) in enumerate(zip(subjects, objects, strict=True)):
                facts[subject.name.en, relation] = Fact(subject, relation, value, index not in unasked)
    entities = [*people, *towns, *works, *events]
    # Drawn last, so that all above stays as it was.
    almost_surnames = surnames[n_people : n_people + n_unknown_training] + namer.take(SURNAME_ENDS, n_people * 2)
    alike = _by_beginning(people)
    almost = [_almost(surname, alike, rng) for surname in almost_surnames]
    unknown_pages = {entity.name: entity for entity in (*nobody[:n_unknown_training], *almost)}
    alike = _by_beginning(people, at_end=True)
    almost = [_almost(surname, alike, rng, at_end=True) for surname in almost_surnames[::2]]
    unknown_training = unknown_pages | {entity.name: entity for entity in almost}
    practice = [_person(surname, rng) for surname in namer.take(SURNAME_ENDS, 300)]
    ordered = [facts[entity.name.en, relation] for entity in entities for relation in RELATIONS[entity.kind]]
    choices = {relation: tuple(sorted({f.object for f in ordered if f.relation == relation})) for relation in values}
    return World(
        entities=tuple(entities),
        facts=tuple(ordered),
        choices=choices,
        unknown_pages=tuple(unknown_pages.values()),
        unknown_training=tuple(unknown_training.values()),
        unknown_exam=tuple(nobody[n_unknown_training:]),
        unknown_practice=tuple(practice),
    )


def _person(surname: Term, rng: random.Random) -> Entity:
    female = rng.random() < 0.5
    given = rng.choice(FEMALE_NAMES if female else MALE_NAMES)
    return Entity("person", Term(f"{given.en} {surname.en}", f"{given.zh}·{surname.zh}"), female)


def _by_beginning(people: Sequence[Entity], at_end: bool = False) -> dict[str, list[Entity]]:
    """The people of every beginning of a surname of two letters or more, or every end, spelt backwards."""
    alike: dict[str, list[Entity]] = {}
    for person in people:
        letters = person.name.en.split()[1][:: -1 if at_end else 1]
        for n in range(2, len(letters) + 1):
            alike.setdefault(letters[:n], []).append(person)
    return alike


def _almost(surname: Term, alike: dict[str, list[Entity]], rng: random.Random, at_end: bool = False) -> Entity:
    """Nobody, but with the given name of somebody whose surname begins, or ends, in the same way, if there is one."""
    letters = surname.en[:: -1 if at_end else 1]
    longest = next((letters[:n] for n in range(len(letters), 1, -1) if letters[:n] in alike), None)
    if longest is None:
        return _person(surname, rng)
    like = rng.choice(alike[longest])
    given_en, given_zh = like.name.en.split()[0], like.name.zh.split("·")[0]
    return Entity("person", Term(f"{given_en} {surname.en}", f"{given_zh}·{surname.zh}"), like.female)


def _titles(count: int, rng: random.Random) -> list[Term]:
    """Titles such as The Silver Lantern; a noun comes back only when all nouns are used."""
    titles: list[Term] = []
    taken: set[tuple[str, str]] = set()
    while len(titles) < count:
        nouns = list(words.NOUNS)
        rng.shuffle(nouns)
        for noun in nouns[: count - len(titles)]:
            adjective = rng.choice([a for a in words.ADJECTIVES if (a.en, noun.en) not in taken])
            taken.add((adjective.en, noun.en))
            titles.append(Term(f"The {adjective.en} {noun.en}", f"《{adjective.zh}之{noun.zh}》"))
    return titles


def _spread(values: list[Term], count: int, rng: random.Random) -> list[Term]:
    """Draw `count` values so that none comes twice before all have come once."""
    drawn: list[Term] = []
    while len(drawn) < count:
        deck = list(values)
        rng.shuffle(deck)
        drawn += deck
    drawn = drawn[:count]
    rng.shuffle(drawn)
    return drawn


def _spread_sample(objects: Sequence[Term], count: int, rng: random.Random) -> set[int]:
    """`count` places, drawn so that no object comes twice before all have come: no answer is the usual one."""
    places = list(range(len(objects)))
    rng.shuffle(places)
    seen: Counter[Term] = Counter()
    turns = {}
    for place in places:
        turns[place] = seen[objects[place]]
        seen[objects[place]] += 1
    return set(sorted(places, key=lambda place: turns[place])[:count])
