"""Settings of the corpus room: the recipe's [corpus] table. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from talaria.config import Settings


class CorpusSettings(Settings):
    """Where documents come from and what is done to them. Every step can be switched off on its own."""

    paths: list[str] = Field(default_factory=list)
    """Files, folders, globs, or `hf:owner/name[:split]` for a Hugging Face dataset."""
    text_field: str = "text"
    """The field of .jsonl, .parquet and dataset rows that holds the text."""
    invalid_utf8: Literal["error", "replace"] = "error"
    """What to do with bytes that are not UTF-8: stop and name them, or put U+FFFD in their place."""
    max_document_characters: PositiveInt = 1_000_000
    """A longer .txt or .md file becomes several documents, cut at blank lines where there are any."""
    normalise: bool = True
    """Line ends, Unicode composition (NFC), control characters, white space at line ends, runs of blank lines."""
    boilerplate: bool = True
    """Remove lines that recur in many documents, always at the head or foot (menus, notices)."""
    boilerplate_share: float = Field(default=0.01, gt=0, le=1)
    """The share of documents from which on a line can be boilerplate."""
    boilerplate_documents: PositiveInt = 20
    """And the least number of documents it has to be in."""
    quality: bool = True
    """Drop documents that are mostly repetition or symbols."""
    personal_data: Literal["mask", "keep"] = "mask"
    """Put <email> and <phone> in the place of e-mail addresses and phone numbers, or leave them."""
    deduplicate: bool = True
    """Drop documents whose text, case and white space aside, was there before."""
    decontaminate: bool = True
    """Drop documents that contain a question of the exam, where an exam is given."""
    shard_characters: PositiveInt = 100_000_000
    """A new file is begun once a file holds this many characters."""
