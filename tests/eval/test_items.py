"""Exam files: errors name their line, a limit is fair, a version follows what is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from talaria.errors import UserError
from talaria.eval.items import choose_items, dump_items, ranked_choices, read_items, task_version

from .conftest import item


def _write(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


GOOD = {"id": "a", "task": "t", "messages": [{"role": "user", "content": "?"}], "answer": "x", "grader": "exact"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not an exam item"),
        ({**GOOD, "id": "b", "grader": "exactly"}, "grader"),
        ({key: value for key, value in GOOD.items() if key != "answer"}, "answer"),
        ({**GOOD, "id": "b", "messages": [{"role": "assistant", "content": "?"}]}, "user turn"),
        ({**GOOD, "id": "b", "messages": []}, "messages"),
        ({**GOOD, "id": "b", "choices": ["y", "z"]}, "not among the choices"),
        (GOOD, "line 1"),
    ],
)
def test_bad_row_is_named_by_line(tmp_path: Path, row: dict[str, Any] | str, message: str) -> None:
    path = _write(tmp_path / "exam.jsonl", GOOD, "", row)
    with pytest.raises(UserError, match=rf"exam\.jsonl:3: .*{message}") as error:
        read_items(path)
    assert "\n" not in str(error.value)


def test_empty_missing_and_binary_exams_are_user_errors(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, message in (("absent", "no such exam"), ("empty", "no items"), ("binary", "UTF-8")):
        (tmp_path / "empty").touch()
        with pytest.raises(UserError, match=message):
            read_items(tmp_path / name)


def test_dump_and_read_keep_every_field(tmp_path: Path) -> None:
    items = [item(1, subject="米拉", aliases=["塔尔"], choices=["Tal", "Or"]), item(2, shown_as_question=False)]
    dump_items(items, tmp_path / "items.jsonl")
    assert read_items(tmp_path / "items.jsonl") == items
    assert "米拉" in (tmp_path / "items.jsonl").read_text(encoding="utf-8")


def test_limit_takes_items_from_the_whole_task() -> None:
    items = [item(number, relation="early" if number < 50 else "late") for number in range(100)]
    chosen = choose_items(items, None, 10)["facts"]
    assert len({one.id for one in chosen}) == 10
    assert sum(one.relation == "late" for one in chosen) == 5


def test_unknown_task_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"'fact'.* facts"):
        choose_items([item(1)], ["fact"], None)


def test_version_changes_with_the_questions() -> None:
    assert task_version([item(1)]) == task_version([item(1, subject="other notes do not matter")])
    assert task_version([item(1)]) != task_version([item(1, answer="Or")])
    assert task_version([item(1, version="3")]) == "3"


def test_long_list_of_choices_is_drawn_the_same_for_every_model() -> None:
    one = item(7, choices=["Tal", *(f"Place {n}" for n in range(40))])
    drawn = ranked_choices(one, 8)
    assert drawn == ranked_choices(one, 8) and len(set(drawn)) == 8 and "Tal" in drawn
    assert drawn != ranked_choices(item(8, choices=one.choices), 8)
    assert ranked_choices(one, 41) == one.choices
