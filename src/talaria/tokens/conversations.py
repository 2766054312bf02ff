"""Files of conversations in, lists of messages out.

Reads JSONL rows `{"messages": [{"role": ..., "content": ...}, ...]}` and Alpaca records `{"instruction", "input",
"output"}`, as JSONL or as one JSON array, plain or .gz/.zst.

    for messages in read_conversations(Path("conversations.jsonl")): ...
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from talaria.corpus.document import decode_line
from talaria.corpus.files import kind_of, read_chunks, read_lines
from talaria.errors import UserError
from talaria.tokens.chat import check_messages

Conversation = list[dict[str, str]]


def read_conversations(path: str | Path) -> list[Conversation]:
    """All conversations of a file, in order; other fields of its rows are left out.

    An Alpaca record becomes a user's turn (instruction, blank line, input) and an answer (output). Raises UserError
    that names file and line (of a JSON array: the record) for what is not a conversation, and for a file without one.
    """
    path = Path(path)
    conversations = [_conversation(row, place) for place, row in read_rows(path)]
    if not conversations:
        raise UserError(f"{path}: holds no conversation; give a file with at least one")
    return conversations


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Place (file and line, or record) and value of each row: JSONL, or one JSON array in a .json file, plain or
    .gz/.zst. Raises UserError that names the place of what is not JSON."""
    if kind_of(path) == ".json":
        yield from _array(path)
        return
    for number, offset, line in read_lines(path):
        if line.strip():
            yield f"{path}:{number}", _parse(decode_line(path, line, offset), f"{path}:{number}")


def _array(path: Path) -> Iterator[tuple[str, Any]]:
    rows = _parse(decode_line(path, b"".join(read_chunks(path)), 0), str(path))
    if not isinstance(rows, list):
        raise UserError(f"{path}: is not a JSON array; write [...] or name the file .jsonl with one record a line")
    for number, row in enumerate(rows, start=1):
        yield f"{path}: record {number}", row


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not valid JSON ({error}); mend or remove it") from None


def _conversation(row: Any, place: str) -> Conversation:
    if isinstance(row, dict) and "messages" in row:
        check_messages(row["messages"], f"{place}: messages")
        return [{"role": message["role"], "content": message["content"]} for message in row["messages"]]
    if isinstance(row, dict) and isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str):
        question = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
        return [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
    raise UserError(f'{place}: no conversation; a row needs "messages", or "instruction" and "output"')
