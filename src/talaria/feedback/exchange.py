"""Choices in the forms that others keep them in, to and from the feedback store.

    counts = import_choices(store, Path("harmless.jsonl.gz"), "hh", criterion="harmless")
    counts = export_choices(store.read_comparisons(), Path("pairs.jsonl"), "dpo")

    hh       {"chosen", "rejected"}: whole dialogues as text, "\\n\\nHuman: ...\\n\\nAssistant: ..." (Bai et al. 2022)
    oasst    message trees whose replies have a "rank" (OpenAssistant)
    dpo      {"prompt", "chosen", "rejected"} and the other spellings of a pair (TRL, LLaMA-Factory)
    jsonl    our own, which loses nothing: messages, answers, ranking, annotator, time, flags, scores, comment

What a form cannot hold, or a file has wrong, is left out and counted by its reason; nothing is bent to fit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talaria.errors import UserError
from talaria.feedback.forms import READERS, WRITERS, Choice, LeftOut
from talaria.feedback.schema import answers, comparisons, insert_all, prompts
from talaria.feedback.store import FLAGS, Comparison, FeedbackStore, comparison_row
from talaria.files import atomic_write, sha256
from talaria.tokens.conversations import read_rows


@dataclass(frozen=True)
class Counts:
    """Of an import or export: how many choices went through, and how many did not, by reason."""

    n: int
    left_out: dict[str, int]


def read_choices(path: Path, form: str) -> tuple[list[Choice], dict[str, int]]:
    """The choices of a file and how many rows were left out, by reason.

    JSONL or one JSON array, plain or .gz/.zst. Raises UserError for a row that is not JSON or not of this form at all.
    """
    if form not in READERS:
        raise UserError(f"form {form!r}: unknown; choose {', '.join(READERS)}")
    choices, left_out = [], Counter[str]()
    for place, row in read_rows(path):
        if not isinstance(row, dict):
            raise UserError(f"{place}: is {type(row).__name__}, not an object; choose another form than {form!r}")
        try:
            for choice in READERS[form](row, place):
                if isinstance(choice, str):
                    left_out[choice] += 1
                else:
                    _require_text([choice.messages, choice.answers, choice.annotator, choice.details], place)
                    choices.append(choice)
        except LeftOut as reason:
            left_out[str(reason)] += 1
    return choices, dict(left_out)


def _require_text(value: Any, place: str) -> None:
    """Raises UserError for text in `value`, at any depth, that a database cannot hold: JSON writes halves of characters
    and NUL as escapes, which are well-formed there and in no other text."""
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{place}: {value[:60]!a} holds NUL or half a character; mend the row or take it out")
    elif isinstance(value, Mapping):
        _require_text([*value, *value.values()], place)
    elif isinstance(value, list | tuple):
        for part in value:
            _require_text(part, place)


def import_choices(
    store: FeedbackStore, path: Path, form: str, criterion: str | None = None, split: str | None = None
) -> Counts:
    """Put a file's choices into the store, all of them or, where anything goes wrong, none. A file comes in only once.

    `criterion`: what the choices are about where their rows do not tell (helpful, harmless); `split` likewise.
    """
    source = f"{path.name}#{sha256(path)[:16]}"
    choices, left_out = read_choices(path, form)
    if not choices:
        raise UserError(f"{path}: holds no choice in the form {form!r} ({_told(left_out)}); choose another form")
    prompt_rows: list[dict[str, Any]] = []
    answer_rows: list[dict[str, Any]] = []
    known: dict[tuple[Any, ...], int] = {}
    placed: list[tuple[int, list[int]]] = []  # of each choice, the places of its prompt and answers among the rows
    for choice in choices:
        # Rows that several people wrote on the same prompt and answers go on being about the same ones.
        asked = (json.dumps(choice.messages, sort_keys=True),)
        if asked not in known:
            known[asked] = len(prompt_rows)
            told = {"asked_by": choice.asked_by, "split": choice.split or split}
            prompt_rows.append({"messages": choice.messages, "source": source, **told})
        # What one of its rows was put aside for all are.
        prompt_rows[known[asked]]["split"] = prompt_rows[known[asked]]["split"] or choice.split
        prompt, places = known[asked], list[int]()
        for answer in choice.answers:
            key: tuple[Any, ...] = (prompt, answer["text"], answer["model"], answer.get("seed"))
            while key in known and known[key] in places:  # the same text twice in one comparison is two answers
                key = (*key, None)
            if key not in known:
                known[key] = len(answer_rows)
                answer_rows.append({"prompt_id": prompt, "seed": None, "sampling": {}, **answer})
            places.append(known[key])
        placed.append((prompt, places))
    with store.database.writing() as connection:
        if store.has_source(source):
            raise UserError(f"{path}: is in {store.database.shown} already; nothing was added")
        prompt_ids = insert_all(connection, prompts, prompt_rows)
        for row in answer_rows:
            row["prompt_id"] = prompt_ids[row["prompt_id"]]
        answer_ids = insert_all(connection, answers, answer_rows)
        rows = [
            {"prompt_id": prompt_ids[prompt], **_row(choice, [answer_ids[place] for place in places], criterion)}
            for choice, (prompt, places) in zip(choices, placed, strict=True)
        ]
        insert_all(connection, comparisons, rows)
    return Counts(len(choices), left_out)


def _row(choice: Choice, ids: list[int], criterion: str | None) -> dict[str, Any]:
    details = {"criterion": criterion, **choice.details}
    details["flags"] = {
        name: [ids[place] for place in flagged] if name in FLAGS else flagged
        for name, flagged in details.get("flags", {}).items()
    }
    details["scores"] = {ids[int(place)]: score for place, score in details.get("scores", {}).items()}
    return comparison_row([[ids[place] for place in group] for group in choice.ranking], choice.annotator, **details)


def export_choices(choices: Sequence[Comparison], path: Path, form: str) -> Counts:
    """Write choices to a file that appears whole or not at all; "hh" and "dpo" hold each strict pair of a ranking."""
    if form not in WRITERS:
        raise UserError(f"form {form!r}: unknown; choose {', '.join(READERS)}")
    left_out: Counter[str] = Counter()
    rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in WRITERS[form](choices, left_out)]
    if not rows:
        raise UserError(f"{path}: nothing to export ({_told(left_out)})")
    atomic_write(path, "".join(rows))
    return Counts(len(rows), dict(left_out))


def _told(left_out: Mapping[str, int]) -> str:
    return "; ".join(f"{n} left out: {reason}" for reason, n in left_out.items()) or "it is empty"
