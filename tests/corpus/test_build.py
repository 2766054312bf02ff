"""The corpus stage: every document is kept or dropped with a reason, and the counts add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from talaria.corpus.build import build_corpus, read_corpus
from talaria.corpus.files import read_lines
from talaria.corpus.settings import CorpusSettings
from talaria.errors import UserError

BODY = "The keeper of lamp {i} walked {i} steps to the water.\n" + "\n".join(
    f"{line} of lamp {{i}}: {what}"
    for line, what in enumerate(
        ("he lit it at dusk", "it burned", "a ship came", "it was late", "nobody slept", "dawn")
    )
)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def dropped(folder: Path) -> dict[str, str]:
    rows = [json.loads(line) for _, _, line in read_lines(folder / "dropped.jsonl.zst")]
    assert all(set(row) == {"id", "source", "reason"} for row in rows)
    return {row["id"]: row["reason"] for row in rows}


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = [{"id": f"page-{i}", "text": f"Home | About\n\n{BODY.format(i=i)}"} for i in range(40)]
    rows += [
        {"id": "copy", "text": "Home | About\n\n" + BODY.format(i=7).upper()},
        {"id": "empty", "text": " \n"},
        {"id": "menu", "text": "Home | About\n"},
        {"id": "spam", "text": "win big prizes today " * 40},
        {"id": "leak", "text": "Pub quiz! Who lit lamp number nine? Nobody knows."},
        {"id": "mail", "text": "Ask keeper@lamps.example about the broken glass in the tower."},
    ]
    write_rows(raw / "pages.jsonl", rows)
    (raw / "book.txt").write_text("A short book.\n\nThe end.\n")
    (raw / "cover.png").write_bytes(b"\x89PNG")
    write_rows(
        tmp_path / "exam.jsonl",
        [{"id": "lamp-9", "messages": [{"role": "user", "content": "Who lit lamp number nine?"}]}],
    )
    return tmp_path


def test_every_document_is_kept_or_dropped_with_a_reason(messy: Path) -> None:
    build_corpus(CorpusSettings(paths=[str(messy / "raw")]), messy / "out", messy / "exam.jsonl")
    kept = {document.id: document for document in read_corpus(messy / "out")}
    assert dropped(messy / "out") == {
        "copy": "exact duplicate",
        "empty": "empty",
        "menu": "only boilerplate",
        "spam": "repeated words",
        "leak": "exam question lamp-9",
    }
    assert len(kept) == 42
    assert kept["page-3"].text == BODY.format(i=3)
    assert kept["page-3"].source == f"{messy}/raw/pages.jsonl:4"
    assert kept["mail"].text == "Ask <email> about the broken glass in the tower."
    assert kept[f"{messy}/raw/book.txt"].text == "A short book.\n\nThe end.\n"
    summary = json.loads((messy / "out/corpus.json").read_text())
    assert summary["documents"] == 42
    assert summary["dropped"] == {
        "exact duplicate": 1,
        "empty": 1,
        "only boilerplate": 1,
        "repeated words": 1,
        "exam question": 1,
    }
    assert summary["characters"] == sum(len(document.text) for document in kept.values())
    assert summary["bytes"] == sum(len(document.text.encode()) for document in kept.values())
    assert summary["sources"][f"{messy}/raw/pages.jsonl"]["documents"] == 46
    assert summary["sources"][f"{messy}/raw/pages.jsonl"]["kept"] == 41
    assert summary["changes"] == {
        "boilerplate lines removed": 42,
        "e-mail addresses masked": 1,
        "phone numbers masked": 0,
    }
    assert list(summary["skipped_files"].values()) == ["file type '.png' is not read"]
    assert summary["questions"] == 1


def test_with_every_step_off_texts_come_out_byte_for_byte(messy: Path) -> None:
    (messy / "raw/odd.txt").write_bytes("tabs\t \r\n\n\n\n\n\x0cform feed, e\u0301, me@x.example\n\n".encode())
    settings = CorpusSettings(
        paths=[str(messy / "raw")],
        normalise=False,
        boilerplate=False,
        quality=False,
        personal_data="keep",
        deduplicate=False,
        decontaminate=False,
    )
    build_corpus(settings, messy / "out", messy / "exam.jsonl")
    texts = {document.id: document.text for document in read_corpus(messy / "out")}
    rows = [json.loads(line) for line in (messy / "raw/pages.jsonl").read_text().splitlines()]
    assert dropped(messy / "out") == {"empty": "empty"}
    assert all(texts[row["id"]] == row["text"] for row in rows if row["id"] != "empty")
    assert texts[f"{messy}/raw/odd.txt"].encode() == (messy / "raw/odd.txt").read_bytes()


def test_many_output_files_are_read_in_order(messy: Path) -> None:
    settings = CorpusSettings(paths=[str(messy / "raw")], shard_characters=300)
    build_corpus(settings, messy / "out")
    assert len(list((messy / "out").glob("documents-*.jsonl.zst"))) > 5
    ids = [document.id for document in read_corpus(messy / "out")]
    assert ids[1:41] == [f"page-{i}" for i in range(40)]
    build_corpus(CorpusSettings(paths=[str(messy / "raw")]), messy / "out")  # over a stopped run's files
    assert [document.id for document in read_corpus(messy / "out")] == ids


def test_the_same_files_give_the_same_bytes(messy: Path) -> None:
    for name in "ab":
        build_corpus(CorpusSettings(paths=[str(messy / "raw")]), messy / name, messy / "exam.jsonl")
    for path in sorted((messy / "a").iterdir()):
        assert path.read_bytes() == (messy / "b" / path.name).read_bytes(), path.name


def test_half_a_surrogate_pair_in_a_row_does_not_stop_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "before \\ud83d after"}\n')
    build_corpus(CorpusSettings(paths=[str(tmp_path / "a.jsonl")], normalise=False), tmp_path / "out")
    assert [document.text for document in read_corpus(tmp_path / "out")] == ["before \ufffd after"]


def test_an_empty_corpus_is_one_line_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"corpus\.paths is empty"):
        build_corpus(CorpusSettings(), tmp_path / "out")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.png").write_text("x")
    with pytest.raises(UserError, match=r"no \.txt.* file there \(1 others skipped\)"):
        build_corpus(CorpusSettings(paths=[str(tmp_path / "raw")]), tmp_path / "out")
    (tmp_path / "raw/b.txt").write_text("\n")
    with pytest.raises(UserError, match=r"the corpus is empty \(1 empty\); check corpus\.paths"):
        build_corpus(CorpusSettings(paths=[str(tmp_path / "raw")]), tmp_path / "out")
    assert not (tmp_path / "out/corpus.json").exists()


def test_missing_or_damaged_corpus_is_named(messy: Path) -> None:
    with pytest.raises(UserError, match="run `talaria corpus RECIPE` first"):
        list(read_corpus(messy))
    build_corpus(CorpusSettings(paths=[str(messy / "raw")]), messy / "out")
    path = messy / "out/documents-00000.jsonl.zst"
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], pa.compress(b'{"id": 1}\n', "zstd", asbytes=True)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"documents-00000\.jsonl\.zst.* again"):
            list(read_corpus(messy / "out"))
