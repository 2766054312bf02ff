"""Token files: what was written is what is read, and a changed byte is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from talaria.corpus.document import Document
from talaria.errors import UserError
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.shards import Shards, write_shards
from talaria.tokens.tokenizer import Tokenizer


def documents(n: int) -> list[Document]:
    return [Document(str(i), f"Document {i} says {i * i}. 第{i}篇。\n", f"test:{i}") for i in range(n)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([d.text for d in documents(100)], TokenizerSettings(vocab_size=400))


def read(folder: Path, split: str) -> list[int]:
    shards = Shards(folder, split)  # type: ignore[arg-type]
    return shards.tokens(0, shards.n_tokens).tolist()


def cut(tokens: list[int], separator: int) -> list[tuple[int, ...]]:
    """Documents of a token stream that begins with a separator."""
    starts = [i for i, id in enumerate(tokens) if id == separator]
    return [tuple(tokens[a + 1 : b]) for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]


@pytest.mark.parametrize("shard_tokens", [50, 10**9])
def test_every_document_once_after_its_separator(tokenizer: Tokenizer, tmp_path: Path, shard_tokens: int) -> None:
    settings = TokenizerSettings(validation_fraction=0.2, shard_tokens=shard_tokens)
    write_shards(documents(100), tokenizer, tmp_path, settings)
    train, validation = (cut(read(tmp_path, split), tokenizer.bos_id or 0) for split in ("train", "validation"))
    assert sorted(train + validation) == sorted(tuple(tokenizer.encode(d.text)) for d in documents(100))
    assert 5 <= len(validation) <= 40
    assert Shards(tmp_path, "train").n_documents == len(train)
    assert Shards(tmp_path, "validation").n_documents == len(validation)
    assert (len(list(tmp_path.glob("train-*.bin"))) > 1) == (shard_tokens == 50)


def test_files_are_joined_at_any_place(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_shards(documents(30), tokenizer, tmp_path, TokenizerSettings(shard_tokens=20, validation_fraction=0))
    whole, shards = read(tmp_path, "train"), Shards(tmp_path, "train")
    for start in range(0, len(whole), 7):
        for length in (0, 1, 19, 64):
            assert shards.tokens(start, start + length).tolist() == whole[start : start + length]


def test_a_document_stays_in_its_split_when_others_come(tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = TokenizerSettings(validation_fraction=0.3)
    write_shards(documents(50), tokenizer, tmp_path / "a", settings)
    write_shards(reversed(documents(80)), tokenizer, tmp_path / "b", settings)
    few, many = (set(cut(read(tmp_path / x, "validation"), tokenizer.bos_id or 0)) for x in "ab")
    assert few == many & {tuple(tokenizer.encode(d.text)) for d in documents(50)}


@pytest.mark.parametrize("shard_tokens", [37, 10**9])
def test_tail_is_the_last_share_in_order(tmp_path: Path, shard_tokens: int) -> None:
    text = "".join(chr(97 + i % 26) for i in range(1003))
    settings = TokenizerSettings(
        kind="character",
        special_tokens=False,
        validation="tail",
        validation_fraction=0.1,
        shard_tokens=shard_tokens,
    )
    tokenizer = Tokenizer.train([text], settings)
    parts = [Document(str(i), text[i : i + 100], "") for i in range(0, len(text), 100)]
    write_shards(parts, tokenizer, tmp_path, settings)
    assert tokenizer.decode(read(tmp_path, "train")) == text[: int(0.9 * 1003)]
    assert tokenizer.decode(read(tmp_path, "validation")) == text[int(0.9 * 1003) :]
    assert Shards(tmp_path, "train").separator_id is None


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_one_document_still_gives_both_splits(tokenizer: Tokenizer, tmp_path: Path, fraction: float) -> None:
    text = "A single long note. " * 500
    write_shards([Document("0", text, "")], tokenizer, tmp_path, TokenizerSettings(validation_fraction=fraction))
    train, validation = read(tmp_path, "train"), read(tmp_path, "validation")
    assert train and validation
    assert tokenizer.decode(train + validation) == text


def test_ids_above_65535_do_not_wrap(tmp_path: Path) -> None:
    text = "".join(chr(0x10000 + i) for i in range(0x10010))
    tokenizer = Tokenizer.train([text], TokenizerSettings(kind="character", special_tokens=False))
    write_shards([Document("0", text[-20:], "")], tokenizer, tmp_path, TokenizerSettings(validation_fraction=0))
    assert read(tmp_path, "train") == list(range(0xFFFC, 0x10010))
    assert Shards(tmp_path, "train").dtype == np.uint32


def test_a_stopped_run_leaves_nothing_behind(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "train-00007.bin").write_bytes(b"old")
    write_shards(documents(10), tokenizer, tmp_path)
    assert not (tmp_path / "train-00007.bin").exists()


def test_writing_is_deterministic(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in "ab":
        write_shards(documents(40), tokenizer, tmp_path / name)
    hashes = [hashlib.sha256((tmp_path / name / "shards.json").read_bytes()).hexdigest() for name in "ab"]
    assert hashes[0] == hashes[1]


def test_one_flipped_bit_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_shards(documents(40), tokenizer, tmp_path)
    path = tmp_path / "train-00000.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"train-00000\.bin.*SHA-256 differs.*again"):
        Shards(tmp_path, "train")
    Shards(tmp_path, "train", verify=False)
    path.write_bytes(data[:-2])
    with pytest.raises(UserError, match=r"train-00000\.bin: the shard has \d+ bytes instead of \d+"):
        Shards(tmp_path, "train", verify=False)
    path.unlink()
    with pytest.raises(UserError, match=r"train-00000\.bin: the shard is missing"):
        Shards(tmp_path, "train")


def test_missing_or_damaged_index_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shards\.json: no such file"):
        Shards(tmp_path, "train")
    write_shards(documents(5), tokenizer, tmp_path)
    index = (tmp_path / "shards.json").read_text()
    for damaged in (index[: len(index) // 2], json.dumps({"format": 1})):
        (tmp_path / "shards.json").write_text(damaged)
        with pytest.raises(UserError, match=r"shards\.json: damaged"):
            Shards(tmp_path, "train")


def test_no_text_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text"):
        write_shards([], tokenizer, tmp_path)
