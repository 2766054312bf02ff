"""Reading: every format gives its documents, and what cannot be read is named with file and place."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from talaria.corpus.document import Document, read_documents
from talaria.corpus.files import find_files
from talaria.errors import UserError

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}
BOOK = "".join(f"Paragraph {i} 第{i}段 😀.\nIts second line.\n\n" for i in range(400))


def rows(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text, "id": f"row-{i}"}) + "\n" for i, text in enumerate(texts)).encode()


def read(*paths: Path | str, **options: object) -> list[Document]:
    return list(read_documents([str(path) for path in paths], **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", PACK)
def test_every_format_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["eins", "zwei"], "n": [1, 2]}), sink)
    contents = {"a.txt": b"Ein Buch.\n", "b.md": "# 标题\n".encode(), "c.jsonl": rows("x", "y\u2028z")}
    contents["d.parquet"] = sink.getvalue().to_pybytes()
    for name, data in contents.items():
        (tmp_path / (name + suffix)).write_bytes(PACK[suffix](data))
    found = read(tmp_path)
    assert [document.text for document in found] == ["Ein Buch.\n", "# 标题\n", "x", "y\u2028z", "eins", "zwei"]
    places = [document.source.removeprefix(f"{tmp_path}/").replace(suffix, "", 1) for document in found]
    assert places == ["a.txt", "b.md", "c.jsonl:1", "c.jsonl:2", "d.parquet:1", "d.parquet:2"]
    assert [document.id for document in found[2:4]] == ["row-0", "row-1"]
    assert found[4].id == found[4].source


def test_folders_globs_order_and_what_is_skipped(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/deep/a.txt", "sub/c.md", ".hidden.txt", "sub/.git/x.txt", "photo.jpg", "Makefile"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    files, skipped = find_files([str(tmp_path)])
    assert [str(file.relative_to(tmp_path)) for file in files] == ["b.txt", "sub/c.md", "sub/deep/a.txt"]
    assert {name.removeprefix(f"{tmp_path}/"): reason for name, reason in skipped.items()} == {
        ".hidden.txt": "hidden",
        "sub/.git/x.txt": "hidden",
        "photo.jpg": "file type '.jpg' is not read",
        "Makefile": "file type 'without suffix' is not read",
    }
    assert [d.text for d in read(tmp_path / "**/*.txt")] == ["b.txt", "sub/deep/a.txt"]
    assert [d.text for d in read(tmp_path / "sub/c.md", tmp_path)] == ["sub/c.md", "b.txt", "sub/deep/a.txt"]


@pytest.mark.parametrize("limit", [1000, 5000, 10**6])
def test_a_long_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "book.txt"
    path.write_text(BOOK)
    parts = read(path, max_document_characters=limit)
    assert "".join(part.text for part in parts) == BOOK
    assert all(len(part.text) <= limit and part.text.endswith("\n\n") for part in parts)
    assert len(parts) == 1 or len(parts) <= 1.2 * len(BOOK) / limit + 1
    lines = BOOK.split("\n")
    for part in parts[1:]:
        number = int(part.source.rpartition(":")[2])
        assert part.text.startswith(lines[number - 1] + "\n") and lines[number - 2] == ""
    assert len({part.id for part in parts}) == len(parts)


def test_text_without_blank_lines_or_lines_is_cut_too(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a line\n" * 1000)
    (tmp_path / "one.txt").write_text("字" * 5000)
    for name in ("lines.txt", "one.txt"):
        parts = read(tmp_path / name, max_document_characters=999)
        assert "".join(part.text for part in parts) == (tmp_path / name).read_text()
        assert max(len(part.text) for part in parts) <= 999


def test_characters_across_chunk_borders_survive(tmp_path: Path) -> None:
    text = "x" + "好\n" * 800_000  # 3.2 MB: characters straddle the reader's 1 MiB chunks
    (tmp_path / "a.txt").write_text(text)
    assert "".join(part.text for part in read(tmp_path / "a.txt")) == text


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfHello")
    assert read(tmp_path / "a.txt")[0].text == "Hello"


@pytest.mark.parametrize("suffix", PACK)
def test_the_byte_that_is_not_utf8_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix]("好\nfein\n".encode() + b"caf\xe9 au lait\n"))
    with pytest.raises(UserError, match=r'a\.txt.*: not UTF-8 at byte 12 \(0xe9\).*corpus\.invalid_utf8 = "replace"'):
        read(path)
    assert read(path, invalid_utf8="replace")[0].text == "好\nfein\ncaf\ufffd au lait\n"
    rows_path = tmp_path / f"b.jsonl{suffix}"
    rows_path.write_bytes(PACK[suffix](rows("x") + b'{"text": "\xff"}\n'))
    with pytest.raises(UserError, match=rf"b\.jsonl.*: not UTF-8 at byte {len(rows('x')) + 10} \(0xff\)"):
        read(rows_path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.txt", "b.jsonl"])
def test_a_truncated_or_damaged_archive_is_named(tmp_path: Path, suffix: str, name: str) -> None:
    data = PACK[suffix](rows(*(f"{i * 7919 % 104729} rows" for i in range(5000))))
    path = tmp_path / (name + suffix)
    for damaged in (data[: len(data) // 2], data[:-3], b"no archive at all"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{name}{suffix}: .*(truncated|damaged|cannot be read).*again"):
            read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken", r"a\.jsonl:3: not valid JSON"),
        (b"[1, 2]", r"a\.jsonl:3: is list, not an object"),
        (b'{"body": "x", "n": 1}', r"a\.jsonl:3: no field 'text'; set corpus\.text_field to one of: body, n"),
        (b'{"text": 5}', r"a\.jsonl:3: field 'text' is int"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(rows("x") + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.jsonl")


def test_another_text_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x", "id": 7}\n{"body": null}\n')
    assert [(d.id, d.text) for d in read(tmp_path, text_field="body")] == [("7", "x"), (f"{tmp_path}/a.jsonl:2", "")]
    pq.write_table(pa.table({"body": ["y"]}), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet", text_field="body")[0].text == "y"
    with pytest.raises(UserError, match=r"b\.parquet: no column 'text'; set corpus\.text_field to one of: body"):
        read(tmp_path / "b.parquet")


def test_what_does_not_exist_or_is_not_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    (tmp_path / "b.parquet").write_text("x")
    for name, message in {
        "none.txt": r"none\.txt: no such file or folder",
        "*.txt": r"\*\.txt: no such file or folder",
        "a.docx": r"a\.docx: file type is not read",
        "b.parquet": r"b\.parquet: not a readable parquet file",
    }.items():
        with pytest.raises(UserError, match=message):
            read(tmp_path / name)


def test_a_hugging_face_dataset(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_bytes(rows("eins", "zwei"))
    (tmp_path / "test.jsonl").write_bytes(rows("drei"))
    found = read(f"hf:{tmp_path}", f"hf:{tmp_path}:test")
    assert [document.text for document in found] == ["eins", "zwei", "drei"]
    assert found[1].source == f"hf:{tmp_path}:2"
    for name in (f"hf:{tmp_path}/none", f"hf:{tmp_path}:nosplit"):
        with pytest.raises(UserError, match=r"cannot be read .*check the name"):
            read(name)


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install talaria-lm\[hub\]"):
        read("hf:owner/name")
