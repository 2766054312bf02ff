"""Exam items: JSONL in, `Item` out. A row is one question with its right answers and the way to judge them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from talaria.errors import UserError
from talaria.files import atomic_write

Grader = Literal["contains", "exact", "last_number", "refusal", "unknown", "not_refusal"]


class Message(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["system", "user", "assistant"]
    content: str


class Item(BaseModel):
    """One exam question; fields the exam adds ride along untouched."""

    model_config = ConfigDict(extra="allow", frozen=True)
    id: str
    task: str
    lang: str = "en"
    messages: list[Message] = Field(min_length=1)
    answer: str
    aliases: list[str] = []
    grader: Grader = "exact"
    relation: str | None = None
    choices: list[str] | None = None
    shown_as_question: bool | None = None
    version: str | None = None

    @model_validator(mode="after")
    def _is_a_question(self) -> Item:
        if self.messages[-1].role != "user":
            raise ValueError("messages must end with a user turn")
        if self.choices is not None and self.answer not in self.choices:
            raise ValueError("the answer is not among the choices")
        return self

    @property
    def question(self) -> str:
        """The last user turn."""
        return self.messages[-1].content


def read_items(path: Path) -> list[Item]:
    """Read an exam. Raises UserError naming file and line for a row that is not an item, or an id used twice."""
    items: list[Item] = []
    lines: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    item = Item.model_validate_json(line)
                except ValidationError as error:
                    first = error.errors()[0]
                    place = ".".join(map(str, first["loc"]))
                    reason = first["msg"].removeprefix("Value error, ")
                    raise UserError(
                        f"{path}:{number}: not an exam item: {place + ': ' if place else ''}{reason}"
                    ) from None
                if item.id in lines:
                    raise UserError(
                        f"{path}:{number}: id {item.id!r} was used on line {lines[item.id]}; ids must differ"
                    )
                lines[item.id] = number
                items.append(item)
    except FileNotFoundError:
        raise UserError(f"{path}: no such exam; `talaria run` writes one for the embedded world") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if not items:
        raise UserError(f"{path}: holds no items; an exam needs at least one")
    return items


def dump_items(items: Iterable[Item], path: Path) -> None:
    """Write items as JSONL, e.g. for decontamination to read."""
    rows = (json.dumps(item.model_dump(mode="json"), ensure_ascii=False) for item in items)
    atomic_write(path, "".join(row + "\n" for row in rows))


def choose_items(items: Sequence[Item], tasks: Sequence[str] | None, limit: int | None) -> dict[str, list[Item]]:
    """Items by task, in exam order, at most `limit` each. An exam is often sorted by relation, so a limit takes
    every k-th item rather than the first ones."""
    by_task: dict[str, list[Item]] = {}
    for item in items:
        by_task.setdefault(item.task, []).append(item)
    if tasks is not None:
        if unknown := [task for task in tasks if task not in by_task]:
            raise UserError(f"eval.tasks: no task {unknown[0]!r} in the exam; it has {', '.join(sorted(by_task))}")
        by_task = {task: by_task[task] for task in tasks}
    return {task: spread(chosen, limit) for task, chosen in by_task.items()}


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` of `items`, evenly spaced."""
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def ranked_choices(item: Item, most: int) -> list[str]:
    """The choices that the gold answer is ranked among: all, or of a list longer than `most` the gold answer and a
    draw of others that depends on the item alone, so that every model faces the same ones."""
    if not item.choices or len(item.choices) <= most:
        return item.choices or []
    others = [choice for choice in item.choices if choice != item.answer and choice not in item.aliases]
    return [item.answer, *random.Random(item.id).sample(others, min(most - 1, len(others)))]


def task_version(items: Sequence[Item]) -> str:
    """The version the exam states for a task, else a short hash of what is asked: other questions, other version."""
    stated = {item.version for item in items if item.version is not None}
    if len(stated) == 1:
        return stated.pop()
    asked = [[item.id, [m.content for m in item.messages], item.answer, item.aliases, item.grader] for item in items]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()[:8]
