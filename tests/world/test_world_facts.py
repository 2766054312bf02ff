"""The world's facts, sizes and determinism."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from talaria.world import acts, arithmetic, conduct
from talaria.world.build import write_world
from talaria.world.framing import NOUN_PHRASES, REQUESTS, SUMS, Frames
from talaria.world.people import LANGUAGES, RELATIONS, World, build_world
from talaria.world.phrasing import ask, state
from talaria.world.phrasings import PHRASINGS, exam_questions, written_questions
from talaria.world.programs import program
from talaria.world.settings import WORLD_VERSION, WorldSettings
from talaria.world.two_hop import CORES, HOPS, split_two_hops

SIZES = (60, 61, 240, 1500)
FILES = ("pages.jsonl", "labels.jsonl", "conversations.jsonl", "exam.jsonl", "facts.jsonl", "world.json")


def test_default_world_has_200_entities_and_1000_facts_that_are_all_different() -> None:
    world = build_world(WorldSettings())
    assert len({entity.name for entity in world.entities}) == len(world.entities) >= 200
    assert len({(f.subject.name.en, f.relation) for f in world.facts}) == len(world.facts) >= 1000
    assert len({(f.subject.name.zh, f.relation) for f in world.facts}) == len(world.facts)


@cache
def world_of(entities: int, seed: int) -> World:
    return build_world(WorldSettings(entities=entities, seed=seed))


@pytest.mark.parametrize("entities", SIZES)
@pytest.mark.parametrize("seed", (0, 7))
def test_guessing_the_commonest_object_scores_below_15_percent(entities: int, seed: int) -> None:
    world = world_of(entities, seed)
    assert len(world.entities) == entities
    for relation in {fact.relation for fact in world.facts}:
        objects = Counter(fact.object for fact in world.facts if fact.relation == relation)
        assert max(objects.values()) / objects.total() < 0.15, relation


@pytest.mark.parametrize("entities", SIZES)
def test_no_object_hides_inside_another_of_its_relation(entities: int) -> None:
    """Else a right answer would name two objects, or a wrong one would pass."""
    world = world_of(entities, seed=0)
    for terms in world.choices.values():
        for lang in LANGUAGES:
            names = [getattr(term, lang).lower() for term in terms]
            assert len(set(names)) == len(names)
            assert not [(a, b) for a in names for b in names if a != b and a in b]


def test_invented_names_are_unlike_each_other_and_nobody_is_somebody() -> None:
    world = build_world(WorldSettings())
    people = [entity for entity in world.entities if entity.kind == "person"]
    for lang in LANGUAGES:
        separator = " " if lang == "en" else "·"
        somebody, training, exam = (
            [getattr(entity.name, lang).split(separator)[1] for entity in entities]
            for entities in (people, world.unknown_training, world.unknown_exam)
        )
        # Nobody of training may come back under another given name; else a surname stands for one person or nobody.
        surnames = [*somebody, *set(training), *exam]
        assert len(set(surnames)) == len(surnames)
        assert not [(a, b) for a in surnames for b in surnames if a != b and a in b]


def test_fine_tuning_asks_about_names_of_nobody_that_begin_or_end_like_somebodys() -> None:
    world = build_world(WorldSettings())
    people = [entity.name.en.split() for entity in world.entities if entity.kind == "person"]
    begins, ends = (
        {(given, surname[:2]) for given, surname in people},
        {(given, surname[-2:]) for given, surname in people},
    )
    nobody = [entity.name.en.split() for entity in world.unknown_training]
    assert {entity.name for entity in world.unknown_pages} < {entity.name for entity in world.unknown_training}
    # Of names drawn blindly about a tenth begin so, and a fifth end so.
    assert sum((given, surname[:2]) in begins for given, surname in nobody) > len(nobody) / 3
    assert sum((given, surname[-2:]) in ends for given, surname in nobody) > len(nobody) / 3


def test_same_seed_gives_the_same_bytes_and_another_seed_another_world(tmp_path: Path) -> None:
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        write_world(WorldSettings(entities=60, seed=seed), tmp_path / name)
    for file in FILES:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert (tmp_path / "first/facts.jsonl").read_bytes() != (tmp_path / "other/facts.jsonl").read_bytes()


def test_a_blunt_share_shortens_answers_about_facts_and_nothing_else(tmp_path: Path) -> None:
    for name, share in (("polite", 0.0), ("blunt", 0.4)):
        write_world(WorldSettings(entities=60, blunt_share=share), tmp_path / name)
    for file in FILES:
        same = (tmp_path / "polite" / file).read_bytes() == (tmp_path / "blunt" / file).read_bytes()
        assert same == (file not in ("conversations.jsonl", "world.json"))
    polite, blunt = (
        [json.loads(line) for line in (tmp_path / name / "conversations.jsonl").open(encoding="utf-8")]
        for name in ("polite", "blunt")
    )
    shortened = about_facts = 0
    for row, other in zip(polite, blunt, strict=True):
        for turn, turned in zip(row["messages"], other["messages"], strict=True):
            if turn != turned:
                shortened += 1
                assert turn["role"] == "assistant" and turned["content"] in turn["content"]
            about_facts += turn["role"] == "assistant" and row["kind"][:-3] in ("facts", "two_hop")
            assert turn == turned or row["kind"][:-3] in ("facts", "two_hop", "dialogue", "mixed")
    assert 0.4 * about_facts < shortened < about_facts


@pytest.mark.parametrize("entities", (60, 240))
def test_one_number_sizes_the_world(entities: int, tmp_path: Path) -> None:
    write_world(WorldSettings(entities=entities), tmp_path)
    summary = json.loads((tmp_path / "world.json").read_text(encoding="utf-8"))
    assert summary["version"] == WORLD_VERSION
    assert summary["entities"] == entities
    assert summary["facts"] == len((tmp_path / "facts.jsonl").read_text(encoding="utf-8").splitlines()) > 4 * entities
    assert set(summary["exam_by_task"]) == {
        *(f"{task}_{lang}" for lang in LANGUAGES for task in _TASKS_IN_BOTH_LANGUAGES),
        "sums_direct",
    }


_TASKS_IN_BOTH_LANGUAGES = ("facts", "unasked", "sums_steps", "two_hop", "harmful", "benign", "unknown")


def test_every_relation_has_the_phrasings_that_the_specification_promises() -> None:
    relations = {relation for group in RELATIONS.values() for relation in group}
    for lang in LANGUAGES:
        assert set(PHRASINGS[lang]) == relations
        for relation, phrasing in PHRASINGS[lang].items():
            assert len({phrasing.answer, *phrasing.statements}) == 7, relation
            assert len(set(written_questions(relation, lang))) >= 20, relation
            assert len(set(exam_questions(relation, lang))) >= 2, relation
            assert all("{o}" in text or "{a}" in text for text in (phrasing.answer, *phrasing.statements)), relation
            questions = (*written_questions(relation, lang), *exam_questions(relation, lang))
            assert all("{s}" in text for text in questions), relation
            assert all("{s}" not in text for text in phrasing.follow_ups), relation


@pytest.mark.parametrize("lang", LANGUAGES)
def test_exam_questions_differ_from_training_questions_by_more_than_one_word(lang: str) -> None:
    for relation, phrasing in PHRASINGS[lang].items():
        written = (*written_questions(relation, lang), *phrasing.follow_ups)
        for question in exam_questions(relation, lang):
            _assert_far(question, written, NOUN_PHRASES[lang], [phrasing.noun_phrase], lang)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_exam_requests_and_sums_differ_from_those_of_training_by_more_than_one_word(lang: str) -> None:
    for question in conduct.EXAM_FRAMES[lang]:
        _assert_far(question, conduct.FRAMES[lang], REQUESTS[lang], ["{act}"], lang)
    for question in (*arithmetic.STEP_EXAM_QUESTIONS[lang], *arithmetic.DIRECT_EXAM_QUESTIONS[lang]):
        _assert_far(question, arithmetic.STEP_QUESTIONS[lang], SUMS[lang], arithmetic.CORES[lang], lang)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_exam_questions_of_two_facts_differ_from_those_of_training_by_more_than_one_word(lang: str) -> None:
    for hops, by_language in HOPS.items():
        _, written, exam = by_language[lang]
        for question in exam:
            _assert_far(question, written, NOUN_PHRASES[lang], CORES[hops][lang], lang)


def test_a_near_training_question_is_found_wherever_its_words_stand() -> None:
    """The distance below is that of the nearest combination of head, core and tail."""
    frames = Frames(("now tell me of ", "if anyone asks for "), (", what is the answer?", "."))
    with pytest.raises(AssertionError):
        _assert_far("If someone asks for {s}, what is the right answer?", [], frames, ["{s}"], "en")
    with pytest.raises(AssertionError):
        _assert_far("Tell us of {s}, please", ["Tell me of {s}, please"], frames, ["{s}"], "en")
    _assert_far("Which is the word that {s} fits?", ["Tell me of {s}, please"], frames, ["{s}"], "en")


def _assert_far(question: str, written: Iterable[str], frames: Frames, cores: Iterable[str], lang: str) -> None:
    """At least four edits (words, or characters in Chinese; a name is one) from any question that training may draw.

    Each row of the edit distance's table is the least over all that may stand so far: head, then core, then tail.
    """
    exam = _units(question, lang)
    start = list(range(len(exam) + 1))
    row = start
    for parts in (frames.heads, cores, frames.tails):
        row = [min(column) for column in zip(*(_advance(row, _units(part, lang), exam) for part in parts), strict=True)]
    assert row[-1] >= 4, (question, lang)
    for other in written:
        assert _advance(start, _units(other, lang), exam)[-1] >= 4, (question, other)


def test_templates_read_as_sentences() -> None:
    world = build_world(WorldSettings(entities=60))
    fact = world.fact(world.entities[0].name.en, "job")
    assert state("{s} works as {a}.", fact, "en").count("{") == 0
    assert ask("Where was {they} born?", fact.subject, "en") in ("Where was she born?", "Where was he born?")


@pytest.mark.parametrize("a,b", [(47, 38), (12, 34), (99, 99), (50, 50), (10, 90)])
def test_worked_steps_are_true(a: int, b: int) -> None:
    for lang in LANGUAGES:
        text = arithmetic.worked(a, b, lang)
        assert text.rstrip(".。").endswith(str(a + b))
        for step in re.findall(r"([\d+]+)=(\d+)", text):
            assert sum(int(part) for part in step[0].split("+")) == int(step[1])


def test_programs_print_what_the_world_says_they_print() -> None:
    """The bug: a maker whose output is written by hand and wrong, which training then teaches."""
    rng = random.Random(0)
    for source, output in {program(rng) for _ in range(600)}:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, "program", "exec"), {})
        assert printed.getvalue() == output + "\n", source


def test_two_hop_answers_follow_from_the_facts_and_never_use_a_fact_that_may_not_be_asked() -> None:
    settings = WorldSettings()
    training, held_out = split_two_hops(build_world(settings), settings)
    assert training and held_out
    for pair in (*training, *held_out):
        assert pair.first.object == pair.second.subject.name
        assert pair.first.asked and pair.second.asked
    assert not {(p.hops, p.first.subject) for p in training} & {(p.hops, p.first.subject) for p in held_out}


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("harmful", (True, False))
def test_words_of_held_out_requests_are_known_from_other_requests(lang: str, harmful: bool) -> None:
    training, exam = acts.split_acts(WorldSettings(), lang, harmful)
    assert len(exam) >= 15
    for act in exam:
        assert act.words not in {other.words for other in training}
        assert act.verb in {other.verb for other in training}
        assert act.object in {other.object for other in training}


def _units(template: str, lang: str) -> list[str]:
    """Words, or characters in Chinese; what stands in braces is one of them, and marks do not count."""
    text = re.sub(r"\{(\w+)\}", lambda match: f" {match[1][0].upper()} ", template.lower())
    text = re.sub(r"[?.,;:？。，：]", " ", text)
    return text.split() if lang == "en" else list(text.replace(" ", ""))


def _advance(row: list[int], units: list[str], exam: list[str]) -> list[int]:
    """The row of the edit distance's table (Levenshtein) against `exam`, `units` further down."""
    for unit in units:
        after = [row[0] + 1]
        for column, other in enumerate(exam):
            after.append(min(row[column + 1] + 1, after[column] + 1, row[column] + (unit != other)))
        row = after
    return row
