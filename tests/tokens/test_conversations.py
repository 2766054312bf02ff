"""Conversation files: both forms are read, and what is wrong is named with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from talaria.errors import UserError
from talaria.tokens.conversations import read_conversations

TALK = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "hi"}]
ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}
ANSWERED = [{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}]


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_both_forms_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    def write(name: str, data: bytes) -> Path:
        path = tmp_path / (name + suffix)
        packed = {"": lambda d: d, ".gz": gzip.compress, ".zst": lambda d: pa.compress(d, "zstd", asbytes=True)}
        path.write_bytes(packed[suffix](data))
        return path

    rows = write("a.jsonl", lines({"messages": TALK, "kind": "greeting"}, ALPACA) + b"\n")
    assert read_conversations(rows) == [TALK, ANSWERED]
    array = write("b.json", json.dumps([ALPACA, {"instruction": "Sing.", "output": "La"}], indent=1).encode())
    assert read_conversations(array)[0] == ANSWERED
    assert read_conversations(array)[1][0]["content"] == "Sing."  # no blank line where there is no input


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lines(ALPACA) + b"{broken\n", r"c\.jsonl:2: not valid JSON"),
        (lines({"messages": TALK}, {"messages": []}), r"c\.jsonl:2: messages: a conversation is a non-empty list"),
        (lines({"messages": [*TALK, {"role": "tool", "content": ""}]}), r"c\.jsonl:1: messages\[2\]: role 'tool'"),
        (lines({"text": "x"}), r"c\.jsonl:1: no conversation"),
        (lines(ALPACA) + b'{"instruction": "\xff"}\n', rf"not UTF-8 at byte {len(lines(ALPACA)) + 17} \(0xff\)"),
        (b"\n", r"c\.jsonl: holds no conversation"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "c.jsonl").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_conversations(tmp_path / "c.jsonl")


def test_missing_file_and_wrong_array_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        read_conversations(tmp_path / "none.jsonl")
    (tmp_path / "d.json").write_text(json.dumps(ALPACA))
    with pytest.raises(UserError, match=r"d\.json: is not a JSON array"):
        read_conversations(tmp_path / "d.json")
