"""Raw files in, a folder of clean documents out, with a reason for every document that was dropped.

Writes `documents-00000.jsonl.zst` ... (id, text, source), `dropped.jsonl.zst` (id, source, reason) and `corpus.json`
(counts). Documents stream through: memory holds one of them at a time, and 8 bytes of hash for each.

    build_corpus(CorpusSettings(paths=["notes/"]), Path("runs/mine/corpus"))
    for document in read_corpus(Path("runs/mine/corpus")): ...
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from talaria.corpus.boilerplate import LineCounts
from talaria.corpus.clean import mask_personal_data, normalise
from talaria.corpus.decontaminate import Questions, read_questions
from talaria.corpus.dedup import SeenTexts
from talaria.corpus.document import HUB, Document, read_dataset, read_file
from talaria.corpus.files import ZstdRows, find_files, read_lines
from talaria.corpus.quality import quality_reason
from talaria.corpus.settings import CorpusSettings
from talaria.errors import UserError
from talaria.files import atomic_write, to_json


def build_corpus(
    settings: CorpusSettings, folder: Path, items: Path | None = None, revisions: Mapping[str, str] | None = None
) -> None:
    """Build the corpus below `folder`; `items` is a JSONL file of held-out questions that no document may contain,
    `revisions` the commits at which data sets named in settings.paths are read, the newest where it is silent.

    Raises UserError for what cannot be read, and where no document is left.
    """
    if not settings.paths:
        raise UserError("corpus.paths is empty; name files or folders, e.g. corpus.paths=[notes/]")
    source = _Source(settings, revisions or {})
    questions = read_questions(items) if items is not None and settings.decontaminate else None
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("documents-*.jsonl.zst"), *folder.glob("dropped.jsonl.zst")):
        stale.unlink()  # of a run that was stopped
    cleaner = _Cleaner(settings, questions)
    if settings.boilerplate:
        for document in source.read("counting lines"):
            cleaner.count_lines(document)
    tally = _Tally()
    output = _Output(folder, settings.shard_characters)
    dropped = ZstdRows(folder / "dropped.jsonl.zst")
    try:
        for document in source.read("cleaning"):
            text, reason = cleaner.clean(document.text)
            tally.add(document, text, reason)
            if reason is None:
                output.write(Document(document.id, text, document.source))
            else:
                dropped.write(id=_whole(document.id), source=document.source, reason=reason)
    finally:
        output.close()
        dropped.close()
    if tally.kept == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in tally.reasons.most_common()) or "no document found"
        raise UserError(
            f"{', '.join(settings.paths)}: the corpus is empty ({reasons}); check corpus.paths and settings"
        )
    summary = tally.describe() | {
        "changes": dict(cleaner.changes),
        "skipped_files": source.skipped,
        "questions": None if questions is None else questions.n_questions,
        "questions_too_short_to_look_for": None if questions is None else questions.n_too_short,
    }
    atomic_write(folder / "corpus.json", to_json(summary))


def read_corpus(folder: Path) -> Iterator[Document]:
    """Documents of a corpus folder, in order."""
    paths = sorted(folder.glob("documents-*.jsonl.zst"))
    if not paths:
        raise UserError(f"{folder}: holds no documents-*.jsonl.zst; run `talaria corpus RECIPE` first")
    for path in paths:
        for number, _, line in read_lines(path):
            try:
                yield Document(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise UserError(f"{path}:{number}: damaged ({error}); run `talaria corpus RECIPE` again") from None


class _Source:
    """The settings' documents, to be read more than once, with a progress bar on a terminal."""

    def __init__(self, settings: CorpusSettings, revisions: Mapping[str, str]) -> None:
        self._settings, self._revisions = settings, revisions
        self._datasets = [path for path in settings.paths if path.startswith(HUB)]
        self._files, self.skipped = find_files([path for path in settings.paths if path not in self._datasets])
        if not self._files and not self._datasets:
            raise UserError(
                f"{', '.join(settings.paths)}: no .txt, .md, .jsonl or .parquet file there "
                f"({len(self.skipped)} others skipped); check corpus.paths"
            )

    def read(self, what: str) -> Iterator[Document]:
        settings = self._settings
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
            sizes = [file.stat().st_size for file in self._files]
            task = progress.add_task(f"{what} (bytes)", total=sum(sizes) or None)
            done = 0
            for file, size in zip(self._files, sizes, strict=True):
                characters = 0
                for document in read_file(
                    file, settings.text_field, settings.invalid_utf8, settings.max_document_characters
                ):
                    yield document
                    characters += len(document.text)
                    progress.update(task, completed=done + min(characters, size))
                done += size
                progress.update(task, completed=done)
            for name in self._datasets:
                yield from read_dataset(name, settings.text_field, self._revisions.get(name))


class _Cleaner:
    """Applies the steps that the settings ask for, in a fixed order, and counts what they changed."""

    def __init__(self, settings: CorpusSettings, questions: Questions | None) -> None:
        self._settings, self._questions = settings, questions
        self._lines = LineCounts(settings.boilerplate_share, settings.boilerplate_documents)
        self._seen = SeenTexts()
        self.changes: Counter[str] = Counter()

    def count_lines(self, document: Document) -> None:
        self._lines.add(self._normalised(document.text))

    def clean(self, text: str) -> tuple[str, str | None]:
        """The clean text, and the reason to drop it or None."""
        settings = self._settings
        text = self._normalised(text)
        if not text.strip():
            return text, "empty"
        if settings.boilerplate:
            text, removed = self._lines.strip(text)
            self.changes["boilerplate lines removed"] += removed
            if not text.strip():
                return text, "only boilerplate"
        if settings.quality and (reason := quality_reason(text)):
            return text, reason
        if settings.deduplicate and not self._seen.add(text):
            return text, "exact duplicate"
        if self._questions is not None and (question := self._questions.find(text)):
            return text, f"exam question {question}"
        if settings.personal_data == "mask":
            text, emails, phones = mask_personal_data(text)
            self.changes["e-mail addresses masked"] += emails
            self.changes["phone numbers masked"] += phones
        return text, None

    def _normalised(self, text: str) -> str:
        return normalise(text) if self._settings.normalise else _whole(text)


class _Tally:
    """Counts for corpus.json."""

    def __init__(self) -> None:
        self.kept = self._characters = self._bytes = 0
        self.reasons: Counter[str] = Counter()
        self._sources: dict[str, Counter[str]] = {}

    def add(self, document: Document, text: str, reason: str | None) -> None:
        name = document.source
        place, _, number = name.rpartition(":")
        if number.isdigit():
            name = place
        counts = self._sources.setdefault(name, Counter())
        counts["documents"] += 1
        if reason is None:
            self.kept += 1
            self._characters += len(text)
            self._bytes += len(text.encode())
            counts["kept"] += 1
            counts["characters"] += len(text)
        else:
            kind = "exam question" if reason.startswith("exam question") else reason
            self.reasons[kind] += 1
            counts[kind] += 1

    def describe(self) -> dict[str, object]:
        return {
            "documents": self.kept,
            "characters": self._characters,
            "bytes": self._bytes,
            "dropped": dict(self.reasons),
            "sources": {name: dict(counts) for name, counts in self._sources.items()},
        }


class _Output:
    """Numbered files of documents."""

    def __init__(self, folder: Path, shard_characters: int) -> None:
        self._folder, self._limit = folder, shard_characters
        self._number = self._characters = 0
        self._rows: ZstdRows | None = None

    def write(self, document: Document) -> None:
        if self._rows is None or self._characters >= self._limit:
            self.close()
            self._rows = ZstdRows(self._folder / f"documents-{self._number:05d}.jsonl.zst")
            self._number, self._characters = self._number + 1, 0
        self._rows.write(id=_whole(document.id), text=document.text, source=document.source)
        self._characters += len(document.text)

    def close(self) -> None:
        if self._rows is not None:
            self._rows.close()
            self._rows = None


def _whole(text: str) -> str:
    """`text` with halves of characters (lone surrogates, from damaged JSON escapes) replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
