"""Exam questions in, an index out that says which question a document contains.

A question is compared as words: lower case, punctuation aside, a Chinese or Japanese character a word. A document
contains it if all its words stand there in a row; of a question longer than 20 words, any 20 in a row are enough
(GPT-3 used 13: Brown et al. 2020, appendix C; questions made from one pattern share more than that).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from pathlib import Path

from talaria.corpus.files import read_lines
from talaria.errors import UserError

_LONGEST = 20
_SHORTEST = 3  # a question of fewer words is everywhere
_WORD = re.compile(r"[\u3400-\u9fff\u3040-\u30ff]|[^\W_\u3400-\u9fff\u3040-\u30ff]+")


class Questions:
    """An index of held-out questions; looking a document up costs the same for ten questions as for a million."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, ...], str] = {}
        self._lengths: dict[tuple[str, ...], set[int]] = defaultdict(set)  # first words -> lengths of runs in _ids
        self.n_questions = 0
        self.n_too_short = 0

    def add(self, id: str, question: str) -> None:
        words = _words(question)
        if len(words) < _SHORTEST:
            self.n_too_short += 1
            return
        self.n_questions += 1
        length = min(len(words), _LONGEST)
        for start in range(len(words) - length + 1):
            run = words[start : start + length]
            self._ids.setdefault(run, id)
            self._lengths[run[:_SHORTEST]].add(length)

    def find(self, text: str) -> str | None:
        """Id of the first question that `text` contains, or None."""
        words = _words(text)
        for start, head in enumerate(zip(words, words[1:], words[2:], strict=False)):
            for length in self._lengths.get(head, ()):
                id = self._ids.get(words[start : start + length])
                if id is not None:
                    return id
        return None


def read_questions(path: Path) -> Questions:
    """The last user message of every row of an items file (JSONL with `messages`)."""
    questions = Questions()
    for number, _, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question = next(m["content"] for m in reversed(row["messages"]) if m["role"] == "user")
        except (ValueError, KeyError, TypeError, StopIteration):
            raise UserError(f'{path}:{number}: not an exam item; a row needs "messages" with a user message') from None
        questions.add(str(row.get("id", number)), question)
    return questions


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
