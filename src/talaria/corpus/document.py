"""Files and datasets in, documents out: text and where it came from.

for document in read_documents(["notes/", "web/*.jsonl.gz", "hf:owner/name:train"]): ...
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from talaria.corpus.files import ROWS, TABLES, find_files, kind_of, read_chunks, read_lines
from talaria.errors import UserError
from talaria.files import MANIFEST, read_json
from talaria.run import REVISION, Revision, is_finished

InvalidUtf8 = Literal["error", "replace"]
HUB = "hf:"
_NEEDS_HUB = "{}: reading it needs an extra; run `pip install talaria-lm[hub]`"


@dataclass(frozen=True)
class Document:
    """`source` says file and place: `folder/file.jsonl:12` is line 12. `id` is the row's own, else the source."""

    id: str
    text: str
    source: str


def read_documents(
    paths: Sequence[str],
    text_field: str = "text",
    invalid_utf8: InvalidUtf8 = "error",
    max_document_characters: int = 1_000_000,
) -> Iterator[Document]:
    """Documents of files, folders, globs and Hugging Face datasets, in the order given.

    A .txt or .md file is one document; a longer one than `max_document_characters` is cut after the last blank line
    before that length (else after the last line, else at the length), so that its documents, joined, are the file.
    A row of .jsonl, .parquet or a dataset is one document. Raises UserError that names file and place.
    """
    files, _ = find_files([path for path in paths if not path.startswith(HUB)])
    for file in files:
        yield from read_file(file, text_field, invalid_utf8, max_document_characters)
    for path in paths:
        if path.startswith(HUB):
            yield from read_dataset(path, text_field)


def read_file(
    path: Path,
    text_field: str = "text",
    invalid_utf8: InvalidUtf8 = "error",
    max_document_characters: int = 1_000_000,
) -> Iterator[Document]:
    """Documents of one file."""
    kind = kind_of(path)
    if kind in ROWS:
        return _read_jsonl(path, text_field, invalid_utf8)
    if kind in TABLES:
        return _read_parquet(path, text_field)
    return _read_text(path, invalid_utf8, max_document_characters)


def _read_text(path: Path, invalid_utf8: InvalidUtf8, limit: int) -> Iterator[Document]:
    parts = list[str]()
    size, line, is_first = 0, 1, True
    for number, offset, raw in read_lines(path):
        text = decode_line(path, raw, offset, invalid_utf8)
        parts.append(text.removeprefix("\ufeff") if number == 1 else text)
        size += len(parts[-1])
        if size <= limit:
            continue
        text = "".join(parts)
        while len(text) > limit:
            cut = _cut(text, limit)
            yield Document(f"{path}:{line}", text[:cut], f"{path}:{line}")
            line += text.count("\n", 0, cut)
            text, is_first = text[cut:], False
        parts, size = [text], len(text)
    if size or is_first:
        place = str(path) if is_first else f"{path}:{line}"
        yield Document(place, "".join(parts), place)


def _cut(text: str, limit: int) -> int:
    blank = text.rfind("\n\n", 0, limit)
    if blank > 0:
        return blank + 2
    line = text.rfind("\n", 0, limit)
    return line + 1 if line > 0 else limit


def decode_line(path: Path, line: bytes, offset: int, invalid_utf8: InvalidUtf8 | None = None) -> str:
    """UTF-8 text of bytes that begin at byte `offset` of a file. Raises UserError that names the byte.

    `invalid_utf8` is the corpus setting; None where there is none and such bytes are always an error.
    """
    try:
        return line.decode("utf-8", errors="replace" if invalid_utf8 == "replace" else "strict")
    except UnicodeDecodeError as error:
        advice = "convert the file to UTF-8"
        if invalid_utf8 is not None:
            advice += ', or set corpus.invalid_utf8 = "replace"'
        raise UserError(
            f"{path}: not UTF-8 at byte {offset + error.start} (0x{line[error.start]:02x}); {advice}"
        ) from None


def _read_jsonl(path: Path, text_field: str, invalid_utf8: InvalidUtf8) -> Iterator[Document]:
    for number, offset, line in read_lines(path):
        if not line.strip():
            continue
        source = f"{path}:{number}"
        text = decode_line(path, line, offset, invalid_utf8)
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source}: not valid JSON ({error}); mend or remove the line") from None
        yield _row_document(row, text_field, source)


def _row_document(row: Any, text_field: str, source: str) -> Document:
    if not isinstance(row, dict):
        raise UserError(f"{source}: is {type(row).__name__}, not an object; every row needs a field {text_field!r}")
    if text_field not in row:
        raise UserError(f"{source}: no field {text_field!r}; set corpus.text_field to one of: {', '.join(row)}")
    text = row[text_field]
    if text is not None and not isinstance(text, str):
        raise UserError(f"{source}: field {text_field!r} is {type(text).__name__}, not text; set corpus.text_field")
    return Document(str(row.get("id") or source), text or "", source)


def _read_parquet(path: Path, text_field: str) -> Iterator[Document]:
    try:
        compressed = path.suffix.lower() != ".parquet"
        table = pq.ParquetFile(pa.BufferReader(b"".join(read_chunks(path))) if compressed else str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check corpus.paths") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({error}); fetch or make it again") from None
    names = table.schema_arrow.names
    if text_field not in names:
        raise UserError(f"{path}: no column {text_field!r}; set corpus.text_field to one of: {', '.join(names)}")
    number = 0
    columns = [name for name in ("id", text_field) if name in names]
    try:
        for batch in table.iter_batches(batch_size=1000, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield _row_document(row, text_field, f"{path}:{number}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged after row {number} ({error}); fetch or make it again") from None


def read_dataset(name: str, text_field: str = "text", revision: str | None = None) -> Iterator[Document]:
    """Documents of `hf:owner/name[:split]`, streamed; the split is "train" and the revision the newest unless given."""
    try:
        import datasets
    except ImportError:
        raise UserError(_NEEDS_HUB.format(name)) from None
    place, _, split = name.removeprefix(HUB).partition(":")
    try:
        rows = datasets.load_dataset(place, split=split or "train", streaming=True, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{name}: cannot be read ({error}); check the name, the split and the network") from None
    for number, row in enumerate(rows, start=1):
        yield _row_document(row, text_field, f"{name}:{number}")


def dataset_inputs(paths: Sequence[str], stage: Path) -> dict[str, Path | Revision]:
    """What each `hf:` path means: a folder on this machine, else the commit that the finished stage at `stage` read,
    else the newest commit. So a run stays at the commit that it first read, and then asks the hub no more."""
    known = read_json(stage / MANIFEST)["inputs"] if is_finished(stage) else {}
    inputs: dict[str, Path | Revision] = {}
    for name in (path for path in paths if path.startswith(HUB)):
        folder = Path(name.removeprefix(HUB).partition(":")[0])
        if folder.exists():
            inputs[name] = folder
        elif name in known:
            inputs[name] = Revision(known[name].removeprefix(REVISION))
        else:
            inputs[name] = Revision(_newest_commit(name, str(folder)))
    return inputs


def _newest_commit(name: str, repository: str) -> str:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(_NEEDS_HUB.format(name)) from None
    try:
        return str(huggingface_hub.HfApi().dataset_info(repository).sha)
    except (OSError, ValueError, huggingface_hub.errors.HTTPError) as error:  # type: ignore[attr-defined]
        raise UserError(f"{name}: cannot be read ({error}); check the name and the network") from None
