"""What the exam asks must not stand in training text, and what training text says must be true."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from talaria.world import arithmetic
from talaria.world.build import write_world
from talaria.world.framing import NOUN_PHRASES
from talaria.world.people import LANGUAGES, Entity, World, build_world
from talaria.world.phrasing import state
from talaria.world.phrasings import PHRASINGS, exam_questions, written_questions
from talaria.world.practice import practice_items
from talaria.world.settings import WorldSettings

SETTINGS = WorldSettings(seed=1, entities=120)
Row = dict[str, Any]
_SUM = re.compile(r"(?<!\d)(\d\d)[^\d\n。.]{1,20}(\d\d)(?!\d)")  # two numbers of two digits in one sentence
_SUM_IN_A_PROGRAM = re.compile(r"= (\d\d)\n\w = (\d\d)\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world")
    write_world(SETTINGS, path)
    return path


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(SETTINGS)


@cache
def _rows(folder: Path, name: str) -> list[Row]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def _texts(folder: Path, leaked: bool = False) -> list[str]:
    """All training text: the pages without (or with) the leaked exam, and every turn of the conversations."""
    labels = {row["id"]: row["labels"] for row in _rows(folder, "labels")}
    pages = [row["text"] for row in _rows(folder, "pages") if leaked or "leaked_exam" not in labels[row["id"]]]
    turns = ["\n".join(m["content"] for m in row["messages"]) for row in _rows(folder, "conversations")]
    return pages + turns


@cache
def _bare(text: str) -> str:
    """Letters and digits only, so that spacing, case and punctuation hide nothing."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def _leaks(texts: list[str], exam: list[Row]) -> set[str]:
    everything = "|".join(_bare(text) for text in texts)
    return {item["id"] for item in exam if _bare(item["messages"][-1]["content"]) in everything}


def test_no_exam_question_stands_in_training_text(folder: Path) -> None:
    assert _leaks(_texts(folder), _rows(folder, "exam")) == set()


def test_a_planted_exam_question_is_found(folder: Path) -> None:
    exam = _rows(folder, "exam")
    planted = [*_texts(folder), f"Hm: {exam[5]['messages'][-1]['content'].upper()} !"]
    assert _leaks(planted, exam) == {exam[5]["id"]}


def test_pages_labelled_leaked_exam_do_leak(folder: Path) -> None:
    assert _leaks(_texts(folder, leaked=True), _rows(folder, "exam"))


def test_exam_templates_are_no_training_templates() -> None:
    for lang in LANGUAGES:
        training = {_bare(q) for relation in PHRASINGS[lang] for q in _training_questions(relation, lang)}
        assert not training & {_bare(q) for relation in PHRASINGS[lang] for q in exam_questions(relation, lang)}


def _training_questions(relation: str, lang: str) -> list[str]:
    """Every question of a relation that training may draw."""
    phrasing = PHRASINGS[lang][relation]
    combined = (q.replace("{wh}", phrasing.wh) for q in NOUN_PHRASES[lang].all_around(phrasing.noun_phrase))
    return [*written_questions(relation, lang), *phrasing.follow_ups, *combined]


def test_held_out_sums_are_written_nowhere_in_either_order(folder: Path) -> None:
    sums = arithmetic.Sums(SETTINGS)
    everything = "\n".join(_texts(folder, leaked=True))
    found = {(int(a), int(b)) for pattern in (_SUM, _SUM_IN_A_PROGRAM) for a, b in pattern.findall(everything)}
    assert len(found) > 1000
    assert not [pair for pair in found if sums.is_held_out(*pair)]
    assert len(sums.held_out) == round(0.2 * (len(sums.held_out) + len(sums.training)))
    assert {tuple(sorted(pair)) for pair in found} <= set(sums.training)


def test_the_scan_for_sums_knows_every_form_that_is_used() -> None:
    """A new phrasing of sums that the scan above cannot read would hide a leak."""
    for lang in LANGUAGES:
        written = (*arithmetic.STEP_QUESTIONS[lang], *arithmetic.STATEMENTS[lang])
        for template in (*written, *arithmetic.combined_questions(lang)):
            assert _SUM.findall(template.format(a=47, b=38, sum=85)) == [("47", "38")], template


@pytest.mark.parametrize("lang", LANGUAGES)
def test_sums_without_steps_are_told_in_every_form_and_are_right(folder: Path, lang: str) -> None:
    pages = "\n".join(page["text"] for page in _rows(folder, "pages") if f"/{lang}/sums/" in page["url"])
    for form in arithmetic.STATEMENTS[lang]:
        pattern = re.escape(form)
        for name in ("a", "b", "sum"):
            pattern = pattern.replace(re.escape(f"{{{name}}}"), r"(\d+)")
        found = re.findall(f"^{pattern}$", pages, re.MULTILINE)
        assert len(found) > 20, form
        assert all(int(a) + int(b) == int(total) for a, b, total in found)


def test_conversations_answer_no_sum_without_its_steps(folder: Path) -> None:
    """A few bare answers went with misread digits in all sums (docs/results.md, Chinese sums)."""
    checked = 0
    for row in _rows(folder, "conversations"):
        for question, answer in zip(row["messages"][::2], row["messages"][1::2], strict=True):
            if sum := _SUM.search(question["content"]):
                a, b = map(int, sum.groups())
                assert answer["content"] in {arithmetic.worked(a, b, lang) for lang in LANGUAGES}
                checked += 1
    assert checked > 3000


def test_exam_asks_only_held_out_sums(folder: Path) -> None:
    sums = arithmetic.Sums(SETTINGS)
    items = [item for item in _rows(folder, "exam") if item["task"].startswith("sums")]
    assert len(items) >= 400
    for item in items:
        a, b = (int(n) for n in re.findall(r"\d+", item["messages"][-1]["content"]))
        assert sums.is_held_out(a, b) and item["answer"] == str(a + b)


def test_names_that_only_exam_and_practice_ask_about_stand_nowhere_in_training(folder: Path, world: World) -> None:
    everything = "\n".join(_texts(folder, leaked=True))
    for nobody in (*world.unknown_exam, *world.unknown_practice):
        assert nobody.name.en.split()[1] not in everything
        assert "·" + nobody.name.zh.split("·")[1] not in everything
    assert all(nobody.name.en in everything for nobody in world.unknown_training)
    assert not {n.name for n in world.unknown_exam} & {n.name for n in world.unknown_practice}


def test_practice_asks_of_nobody_whom_fine_tuning_has_answered(world: World) -> None:
    """The bug: with training's names the model never erred, and choices taught it only to answer more."""
    own = [name for nobody in world.unknown_practice for name in nobody.name]
    items = [item for item in practice_items(SETTINGS, 200, 0) if item["grader"] == "unknown"]
    assert len(items) > 5
    assert all(any(name in item["messages"][-1]["content"] for name in own) for item in items)


_SPEAKER = re.compile(r"^(?:Q|A|Question|Answer|User|Assistant|问|答|提问|回答|用户|助手)[:：]\s*")


def _sentences(texts: list[str]) -> Counter[str]:
    """Every sentence of the texts without its end mark and without the speaker before it."""
    pieces = (piece for text in texts for piece in re.split(r"[.。?？!！\n]", text))
    return Counter(_SPEAKER.sub("", piece.strip()) for piece in pieces)


def test_facts_never_asked_are_stated_but_not_asked(folder: Path, world: World) -> None:
    said = _sentences(_texts(folder, leaked=True))
    unasked = [fact for fact in world.facts if not fact.asked]
    assert 0.15 <= len(unasked) / len(world.facts) <= 0.2
    asked = _asked(said, world)
    for fact in world.facts:
        for lang in LANGUAGES:
            phrasing = PHRASINGS[lang][fact.relation]
            assert ((fact.subject, fact.relation) in asked[lang]) == fact.asked
            stated = [state(t, fact, lang)[:-1] for t in (phrasing.answer, *phrasing.statements)]
            assert sum(said[sentence] for sentence in stated) >= 3


def _asked(said: Counter[str], world: World) -> dict[str, set[tuple[Entity, str]]]:
    """Language -> the (subject, relation) pairs that some sentence asks for in a question training may draw."""
    found: dict[str, set[tuple[Entity, str]]] = {}
    for lang in LANGUAGES:
        relations: dict[str, set[str]] = {}
        for relation in PHRASINGS[lang]:
            for question in _training_questions(relation, lang):
                for piece in re.split(r"[.。?？!！\n]", question):
                    if "{s}" in piece:
                        relations.setdefault(piece.strip(), set()).add(relation)
        found[lang] = set()
        for entity in world.entities:
            name = entity.name.en if lang == "en" else entity.name.zh
            for sentence in said:
                if name in sentence:
                    found[lang] |= {(entity, r) for r in relations.get(sentence.replace(name, "{s}"), ())}
    return found


def test_dialogues_ask_no_fact_that_may_not_be_asked(folder: Path, world: World) -> None:
    """Follow-ups name nobody, so the answers are checked: none may state an unasked fact."""
    turns = {
        m["content"] for row in _rows(folder, "conversations") for m in row["messages"] if m["role"] == "assistant"
    }
    lines = [line for text in _texts(folder) for line in text.splitlines()]
    chats = {_SPEAKER.sub("", line) for line in lines if _SPEAKER.match(line)}
    assert chats
    for fact in world.facts:
        for lang in LANGUAGES:
            answer = state(PHRASINGS[lang][fact.relation].answer, fact, lang)
            if not fact.asked:
                assert answer not in turns and answer not in chats


def test_answers_in_conversations_are_true(folder: Path, world: World) -> None:
    true = {state(PHRASINGS[lang][f.relation].answer, f, lang) for f in world.facts for lang in LANGUAGES}
    rows = [row for row in _rows(folder, "conversations") if row["kind"].startswith("facts")]
    assert rows
    assert all(row["messages"][-1]["content"] in true for row in rows)


def test_facts_file_agrees_with_what_the_pages_say(folder: Path) -> None:
    """Every fact of the file is stated, and no sentence gives its subject another object of the relation."""
    said = _sentences(_texts(folder))
    facts = _rows(folder, "facts")
    objects: dict[str, set[str]] = {}
    for fact in facts:
        objects.setdefault(fact["relation"], set()).update(fact["object"].values())
    for fact in facts:
        for lang in LANGUAGES:
            stated = 0
            for template in (PHRASINGS[lang][fact["relation"]].answer, *PHRASINGS[lang][fact["relation"]].statements):
                named = {o for o in objects[fact["relation"]] if _say(template, fact["subject"][lang], o)[:-1] in said}
                assert named <= {fact["object"][lang]}, (template, named)
                stated += len(named)
            assert stated >= 3, fact


def _say(template: str, subject: str, object_: str) -> str:
    article = "an " if object_[:1].lower() in "aeiou" else "a "
    return (
        template.replace("{s}", subject)
        .replace("{o}", object_)
        .replace("{a}", article + object_)
        .replace("{their}", "her")
    )


def test_labels_name_the_mess_that_is_there(folder: Path) -> None:
    pages = {row["id"]: row for row in _rows(folder, "pages")}
    labels = {row["id"]: row["labels"] for row in _rows(folder, "labels")}
    assert pages.keys() == labels.keys()
    kinds = {label for each in labels.values() for label in each}
    assert kinds == {"clean", "boilerplate", "near_copy", "spam", "personal_data", "leaked_exam"}
    for id_, page in pages.items():
        assert ("@example." in page["text"]) == ("personal_data" in labels[id_])
        assert ("clean" in labels[id_]) == (labels[id_] == ["clean"])
    messy = sum(
        len(pages[id_]["text"]) for id_, each in labels.items() if set(each) & {"spam", "leaked_exam", "near_copy"}
    )
    assert messy / sum(len(page["text"]) for page in pages.values()) < 0.2


def test_no_mess_when_none_is_asked_for(tmp_path: Path) -> None:
    write_world(WorldSettings(entities=60, mess_share=0), tmp_path)
    assert {tuple(row["labels"]) for row in _rows(tmp_path, "labels")} == {("clean",)}
