"""All phrasings by language, and the questions made of them."""

from __future__ import annotations

import random
from functools import cache

from talaria.world import phrasings_en, phrasings_zh
from talaria.world.framing import NOUN_PHRASES, capitalised
from talaria.world.phrasing import Phrasing

PHRASINGS: dict[str, dict[str, Phrasing]] = {"en": phrasings_en.PHRASINGS_EN, "zh": phrasings_zh.PHRASINGS_ZH}
_FRAMES = {"en": phrasings_en.FRAMES, "zh": phrasings_zh.FRAMES}
_EXAM_FRAMES = {"en": phrasings_en.EXAM_FRAMES, "zh": phrasings_zh.EXAM_FRAMES}


def draw_question(relation: str, lang: str, rng: random.Random) -> str:
    """A training question: as often a written one as one combined of a head, the noun phrase and a tail."""
    if rng.random() < 0.5:
        return rng.choice(written_questions(relation, lang))
    phrasing = PHRASINGS[lang][relation]
    return _filled(NOUN_PHRASES[lang].draw("{np}", rng), phrasing)


@cache
def written_questions(relation: str, lang: str) -> tuple[str, ...]:
    """The language's frames around the relation's noun phrase, and the relation's own questions."""
    phrasing = PHRASINGS[lang][relation]
    return (*(_filled(frame, phrasing) for frame in _FRAMES[lang]), *phrasing.questions)


@cache
def exam_questions(relation: str, lang: str) -> tuple[str, ...]:
    """The exam's questions: frames that training never uses."""
    phrasing = PHRASINGS[lang][relation]
    return tuple(_filled(frame, phrasing) for frame in _EXAM_FRAMES[lang])


def _filled(frame: str, phrasing: Phrasing) -> str:
    return capitalised(frame.replace("{np}", phrasing.noun_phrase).replace("{wh}", phrasing.wh))
