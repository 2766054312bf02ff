"""Questions that join two facts: the country of someone's birthplace, the birthplace of a work's author, and so on.

The answer names the step between. Some of the combinations are shown in training; the exam asks the others.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from talaria.world.framing import NOUN_PHRASES
from talaria.world.people import Entity, Fact, World, stream
from talaria.world.settings import WorldSettings
from talaria.world.vocabulary import Term

TRAINING_SHARE = 0.6

# (first relation, second relation) -> language -> (answer, training questions, exam questions).
# {s} is the subject, {m} the object of the first fact, {o} the object of the second.
HOPS: dict[tuple[str, str], dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]]] = {
    ("birthplace", "country"): {
        "en": (
            "{s} was born in {m}. {m} is in {o}.",
            (
                "In which country was {s} born?",
                "Which country is the birthplace of {s} in?",
                "What country is {s} from?",
                "Tell me the country where {s} was born.",
                "I forgot in which country {s} was born. Remind me.",
                "For my list I still need the country of birth of {s}.",
                "Which country would I visit to see where {s} was born?",
                "{s} has a passport; of which country of birth?",
            ),
            (
                "If someone asks in which country {s} was born, what is the right answer?",
                "I am writing down the country of {s}; what should I write?",
            ),
        ),
        "zh": (
            "{s}出生在{m}。{m}位于{o}。",
            (
                "{s}出生在哪个国家？",
                "{s}的出生地在哪个国家？",
                "{s}是哪个国家的人？",
                "请告诉我{s}出生的国家。",
                "我忘了{s}出生在哪个国家，请提醒我。",
                "我的名单上还缺{s}出生的国家。",
                "想去{s}出生的国家看看，该去哪一个？",
                "说到出生，{s}的故乡属于哪一个国家？",
            ),
            ("如果有人问{s}出生在哪个国家，正确的回答是什么？", "我正在记下{s}出生的国家，应该写上什么？"),
        ),
    },
    ("author", "birthplace"): {
        "en": (
            "{s} was made by {m}. {m} was born in {o}.",
            (
                "Where was the author of {s} born?",
                "In which city was the author of {s} born?",
                "What is the birthplace of the author of {s}?",
                "Tell me where the author of {s} was born.",
                "I forgot the birthplace of the author of {s}. Remind me.",
                "Say in one sentence where the author of {s} was born.",
                "Somebody made {s}; in which city was that person born?",
                "From which city does the one who created {s} come?",
            ),
            (
                "If someone asks where the author of {s} was born, what is the right answer?",
                "I am writing down the birthplace of the author of {s}; what should I write?",
            ),
        ),
        "zh": (
            "{s}的作者是{m}。{m}出生在{o}。",
            (
                "{s}的作者出生在哪里？",
                "{s}的作者出生在哪座城市？",
                "{s}的作者的出生地是哪里？",
                "请告诉我{s}的作者出生在哪里。",
                "我忘了{s}的作者的出生地，请提醒我。",
                "用一句话说出{s}的作者出生在哪里。",
                "创作{s}的那个人，当年出生在哪座城市呢？",
                "我想去看{s}作者的故乡，是哪座城市？",
            ),
            ("如果有人问{s}的作者出生在哪里，正确的回答是什么？", "我正在记下{s}的作者的出生地，应该写上什么？"),
        ),
    },
    ("venue", "country"): {
        "en": (
            "{s} is held in {m}. {m} is in {o}.",
            (
                "In which country is {s} held?",
                "Which country is {s} held in?",
                "What is the country where {s} takes place?",
                "Tell me the country of {s}.",
                "I forgot in which country {s} is held. Remind me.",
                "For my list I still need the country where {s} takes place.",
                "To visit {s}, which country do I have to travel to?",
                "Of which country are the streets that {s} fills?",
            ),
            (
                "If someone asks in which country {s} is held, what is the right answer?",
                "I am writing down the country where {s} takes place; what should I write?",
            ),
        ),
        "zh": (
            "{s}在{m}举行。{m}位于{o}。",
            (
                "{s}在哪个国家举行？",
                "{s}的举办地在哪个国家？",
                "哪个国家举办{s}？",
                "请告诉我举办{s}的国家。",
                "我忘了{s}在哪个国家举行，请提醒我。",
                "我的名单上还缺举办{s}的国家。",
                "想参加{s}，我要到哪一个国家去？",
                "举行{s}的那座城市属于哪一个国家？",
            ),
            ("如果有人问{s}在哪个国家举行，正确的回答是什么？", "我正在记下举办{s}的国家，应该写上什么？"),
        ),
    },
}

# What a combined question stands around.
CORES = {
    ("birthplace", "country"): {
        "en": ("the country where {s} was born", "the country of birth of {s}", "which country {s} was born in"),
        "zh": ("{s}出生的国家", "{s}的故乡所在的国家", "{s}生在哪个国家"),
    },
    ("author", "birthplace"): {
        "en": (
            "the birthplace of the author of {s}",
            "where the author of {s} was born",
            "the home town of the author of {s}",
        ),
        "zh": ("{s}的作者的出生地", "{s}作者的故乡", "{s}的作者生在哪里"),
    },
    ("venue", "country"): {
        "en": ("the country where {s} is held", "the country of the city of {s}", "which country {s} takes place in"),
        "zh": ("举办{s}的国家", "{s}的举办地所在的国家", "{s}在哪个国家举办"),
    },
}


@dataclass(frozen=True)
class TwoHop:
    """Two facts that share a middle: the object of `first` is the subject of `second`."""

    first: Fact
    second: Fact

    @property
    def hops(self) -> tuple[str, str]:
        """The key of `HOPS`."""
        return self.first.relation, self.second.relation

    def answer(self, lang: str) -> str:
        """The assistant's sentences, which name the middle and the object."""
        return self._fill(HOPS[self.hops][lang][0], lang)

    def questions(self, lang: str, exam: bool) -> list[str]:
        """All questions, of training or of the exam."""
        return [self._fill(template, lang) for template in HOPS[self.hops][lang][2 if exam else 1]]

    def draw_question(self, lang: str, rng: random.Random) -> str:
        """A training question: as often a written one as one combined of a head, what is asked and a tail."""
        if rng.random() < 0.5:
            return rng.choice(self.questions(lang, exam=False))
        wh = "哪里" if self.hops[1] == "birthplace" else "哪个"
        return self._fill(NOUN_PHRASES[lang].draw(rng.choice(CORES[self.hops][lang]), rng).replace("{wh}", wh), lang)

    def _fill(self, template: str, lang: str) -> str:
        terms: tuple[Term, Term, Term] = (self.first.subject.name, self.first.object, self.second.object)
        s, m, o = (term.en if lang == "en" else term.zh for term in terms)
        return template.format(s=s, m=m, o=o)


def split_two_hops(world: World, settings: WorldSettings) -> tuple[list[TwoHop], list[TwoHop]]:
    """Return (shown in training, held out). Facts that may not be asked take no part."""
    by_name: dict[str, Entity] = {entity.name.en: entity for entity in world.entities}
    pairs = [
        TwoHop(first, second)
        for first_relation, second_relation in HOPS
        for first in world.facts
        if first.relation == first_relation and first.asked
        for second in [world.fact(by_name[first.object.en].name.en, second_relation)]
        if second.asked
    ]
    rng = stream(settings, "two_hop")
    rng.shuffle(pairs)
    cut = round(TRAINING_SHARE * len(pairs))
    return pairs[:cut], pairs[cut:]
