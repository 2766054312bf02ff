"""Documents in, memory-mapped token files out: `train-00000.bin` ..., `validation-00000.bin` ... and `shards.json`.

A shard is nothing but little-endian uint16 ids (uint32 where the vocabulary is larger than 65,536), documents one after
the other, each after a separator token. shards.json binds every file to its size and SHA-256.

    write_shards(read_corpus(corpus_folder), tokenizer, folder, settings)
    Shards(folder, "train").tokens(0, 100)
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from talaria.corpus.document import Document
from talaria.errors import UserError
from talaria.files import atomic_write, read_json, sha256, to_json
from talaria.tokens.settings import TokenizerSettings
from talaria.tokens.tokenizer import Tokenizer

INDEX = "shards.json"
Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
_AGAIN = "delete its folder and run `talaria tokenizer RECIPE` again"
Tokens = npt.NDArray[Any]  # uint16 or uint32


def write_shards(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    folder: Path,
    settings: TokenizerSettings | None = None,
    separator_id: int | None = None,
) -> None:
    """Encode `documents` into shards below `folder`.

    Before every document stands `separator_id`: if None, the tokenizer's bos_id, else its eos_id, else nothing, and the
    documents run on as one text. Validation is drawn by a hash of each document's text, or is the tail of the token
    stream (settings.validation); where the draw leaves one side empty, as with a handful of documents, the tail serves
    too. Raises UserError where there are no tokens.
    """
    settings = settings or TokenizerSettings()
    folder.mkdir(parents=True, exist_ok=True)
    if separator_id is None:
        separator_id = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    writers: dict[Split, _SplitWriter] = {
        split: _SplitWriter(folder, split, dtype, settings.shard_tokens) for split in SPLITS
    }
    head = [] if separator_id is None else [separator_id]
    by_hash = settings.validation == "hash"
    columns = (TextColumn("encoding"), MofNCompleteColumn(), TextColumn("documents"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("encoding", total=None)
        for batch in _batches(documents):
            for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
                held_out = by_hash and _is_held_out(document.text, settings.validation_fraction)
                writers["validation" if held_out else "train"].add(head + ids)
            progress.advance(task, len(batch))
    train, validation = writers["train"], writers["validation"]
    train.close()
    validation.close()
    n_tokens = train.n_tokens + validation.n_tokens
    if n_tokens == 0:
        raise UserError(f"{folder}: the corpus holds no text; check corpus.paths and the counts in corpus.json")
    if settings.validation_fraction > 0 and 0 in (train.n_tokens, validation.n_tokens):
        if train.n_tokens == 0:
            train, validation = validation.as_split("train"), train.as_split("validation")
        train.move_tail(validation, int(n_tokens * (1 - settings.validation_fraction)), separator_id)
    index = {
        "format": 1,
        "dtype": "uint16" if dtype.itemsize == 2 else "uint32",
        "vocab_size": tokenizer.vocab_size,
        "separator_id": separator_id,
        "splits": {"train": train.describe(), "validation": validation.describe()},
    }
    atomic_write(folder / INDEX, to_json(index))


class Shards:
    """The tokens of one split, memory-mapped: `n_tokens`, `n_documents`, `vocab_size`, `separator_id`."""

    def __init__(self, folder: str | Path, split: Split, verify: bool = True) -> None:
        """Open and check the files: sizes always, SHA-256 unless `verify` is false.

        Raises UserError that names the file where one is missing or is not the one that was written.
        """
        folder = Path(folder)
        path = folder / INDEX
        if not path.is_file():
            raise UserError(f"{path}: no such file; run `talaria tokenizer RECIPE` first")
        index = read_json(path)
        self.split = split
        try:
            described = index["splits"][split]
            self.dtype = np.dtype("<u2" if index["dtype"] == "uint16" else "<u4")
            self.vocab_size: int = index["vocab_size"]
            self.separator_id: int | None = index["separator_id"]
            self.n_tokens: int = described["n_tokens"]
            self.n_documents: int = described["n_documents"]
            files = [(folder / file["name"], file["n_tokens"], file["sha256"]) for file in described["files"]]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error} is missing); {_AGAIN}") from None
        self._files = [_open(*file, self.dtype, verify) for file in files]
        self._ends = np.cumsum([len(file) for file in self._files])

    def tokens(self, start: int, stop: int) -> Tokens:
        """Ids from place `start` up to `stop`, as if all files were one; cut at the end of the split."""
        stop = min(stop, self.n_tokens)
        parts = []
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            begin = int(self._ends[number]) - len(self._files[number])
            part = self._files[number][start - begin : stop - begin]
            parts.append(part)
            start += len(part)
            number += 1
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self.dtype), *parts])


def _open(path: Path, n_tokens: int, digest: str, dtype: np.dtype[Any], verify: bool) -> Tokens:
    if not path.is_file():
        raise UserError(f"{path}: the shard is missing; {_AGAIN}")
    size, expected = path.stat().st_size, n_tokens * dtype.itemsize
    if size != expected:
        raise UserError(f"{path}: the shard has {size} bytes instead of {expected}; {_AGAIN}")
    if verify and sha256(path) != digest:
        raise UserError(f"{path}: the shard's content has changed since it was written (SHA-256 differs); {_AGAIN}")
    return np.memmap(path, dtype=dtype, mode="r")


class _SplitWriter:
    """Appends documents to the numbered files of one split."""

    def __init__(self, folder: Path, split: Split, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self._folder, self._split, self._dtype, self._limit = folder, split, dtype, shard_tokens
        self._paths: list[Path] = []
        self._counts: list[int] = []
        self._file: BinaryIO | None = None
        self.n_documents = 0
        for path in self._folder.glob(f"{split}-*.bin"):  # of a run that was stopped
            path.unlink()

    @property
    def n_tokens(self) -> int:
        return sum(self._counts)

    def add(self, ids: list[int]) -> None:
        self._append(np.array(ids, dtype=self._dtype))
        self.n_documents += 1

    def _append(self, tokens: Tokens) -> None:
        if self._file is None or self._counts[-1] >= self._limit:
            self.close()
            self._paths.append(self._folder / f"{self._split}-{len(self._paths):05d}.bin")
            self._counts.append(0)
            self._file = open(self._paths[-1], "wb")  # noqa: SIM115 - stays open between documents
        self._file.write(tokens.tobytes())
        self._counts[-1] += len(tokens)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def as_split(self, split: Split) -> _SplitWriter:
        """Make this the writer of `split`, and rename its files so."""
        self._split = split
        renamed = [self._folder / f"{split}-{number:05d}.bin" for number in range(len(self._paths))]
        for old, new in zip(self._paths, renamed, strict=True):
            old.rename(new)
        self._paths = renamed
        return self

    def move_tail(self, empty: _SplitWriter, cut: int, separator_id: int | None) -> None:
        """Move the tokens from place `cut` on to a writer without tokens. A document that is cut counts in both."""
        files = list(zip(self._paths, self._counts, strict=True))
        self._paths, self._counts = [], []
        begin = 0
        for path, count in files:
            keep = min(max(cut - begin, 0), count)
            if keep < count:
                tail = np.fromfile(path, dtype=self._dtype, offset=keep * self._dtype.itemsize)
                empty._append(tail)
                empty.n_documents += 0 if separator_id is None else int((tail == separator_id).sum())
            if keep:
                with open(path, "r+b") as file:
                    file.truncate(keep * self._dtype.itemsize)
                self._paths.append(path)
                self._counts.append(keep)
            else:
                path.unlink()
            begin += count
        empty.close()
        self.n_documents = max(self.n_documents - empty.n_documents, min(self.n_tokens, 1))
        empty.n_documents = max(empty.n_documents, min(empty.n_tokens, 1))

    def describe(self) -> dict[str, Any]:
        return {
            "n_tokens": self.n_tokens,
            "n_documents": self.n_documents,
            "files": [
                {"name": path.name, "n_tokens": count, "sha256": sha256(path)}
                for path, count in zip(self._paths, self._counts, strict=True)
            ],
        }


def _is_held_out(text: str, fraction: float) -> bool:
    digest = hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


def _batches(
    documents: Iterable[Document], n_documents: int = 256, n_characters: int = 4_000_000
) -> Iterator[list[Document]]:
    """Lists of documents that are large enough to keep all cores busy and small enough for memory."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == n_documents or characters >= n_characters:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
