"""What a relation sounds like in one language: statements, questions for training, other questions for the exam.

The phrasings themselves are in phrasings_en.py and phrasings_zh.py. In templates, {s} is the subject, {o} the object,
{a} the object with its English article, {they}, {their} and {They} the pronouns of the subject.
"""

from __future__ import annotations

from dataclasses import dataclass

from talaria.world.people import Entity, Fact


@dataclass(frozen=True)
class Phrasing:
    """Templates of one relation in one language.

    `answer` is the assistant's sentence; it also counts as a statement. `noun_phrase` is what the frames of a question
    stand around and `wh` its question word; `questions` are the relation's own, `follow_ups` are for a subject that
    was named a turn before.
    """

    answer: str
    statements: tuple[str, ...]
    noun_phrase: str
    wh: str
    questions: tuple[str, ...]
    follow_ups: tuple[str, ...]


def fill(template: str, subject: Entity, object_: str, lang: str) -> str:
    """Put a subject and an object into a template."""
    return template.format(
        s=subject.name.en if lang == "en" else subject.name.zh,
        o=object_,
        a=("an " if object_[:1].lower() in "aeiou" else "a ") + object_,
        **pronouns(subject, lang),
    )


def pronouns(subject: Entity, lang: str) -> dict[str, str]:
    """The words that stand for a subject already named."""
    if lang == "zh":
        they = "它" if subject.kind != "person" else "她" if subject.female else "他"
        return {"they": they, "They": they, "their": they + "的"}
    they, their = ("it", "its") if subject.kind != "person" else ("she", "her") if subject.female else ("he", "his")
    return {"they": they, "They": they.capitalize(), "their": their}


def state(template: str, fact: Fact, lang: str) -> str:
    """Put a fact into a statement or answer template."""
    return fill(template, fact.subject, fact.object.en if lang == "en" else fact.object.zh, lang)


def ask(template: str, subject: Entity, lang: str) -> str:
    """Put a subject into a question template."""
    return fill(template, subject, "", lang)
