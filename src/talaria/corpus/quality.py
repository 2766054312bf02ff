"""A document in, a reason to drop it or None out.

The rules follow Gopher (Rae et al. 2021, https://arxiv.org/abs/2112.11446, appendix A.1.1), made much laxer, so that
verse with refrains, tables, programs and Chinese pass: only what is mostly repetition or mostly symbols goes.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_LEAST_CHARACTERS = 200  # shorter documents are not judged
_REPEATED_LINES = 0.6  # share of characters in lines that stood there before; Gopher: 0.20
_TOP_4_GRAM = 0.3  # share of words that the most frequent run of four words covers; Gopher: 0.16
_LETTERS = 0.4  # least share of letters and digits among visible characters; programs have 0.65 and more

_WORD = re.compile(r"[\u3400-\u9fff\u3040-\u30ff]|[^\W\u3400-\u9fff\u3040-\u30ff]+")


def quality_reason(text: str) -> str | None:
    """ "repeated lines", "repeated words" or "symbols"; None for a document worth keeping."""
    if len(text) < _LEAST_CHARACTERS:
        return None
    visible = "".join(text.split())
    if sum(map(str.isalnum, visible)) < _LETTERS * len(visible) and not _is_marked(visible):
        return "symbols"
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    repeated = sum(len(line) * (count - 1) for line, count in Counter(lines).items())
    if repeated > _REPEATED_LINES * sum(map(len, lines)):
        return "repeated lines"
    words = _WORD.findall(text.lower())
    if len(words) >= 20:
        grams = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
        (_, count), *_ = grams.most_common(1)
        if count > 2 and 4 * count > _TOP_4_GRAM * len(words):
            return "repeated words"
    return None


def _is_marked(visible: str) -> bool:
    """Whether the script writes vowels as combining marks, which are not letters (Hindi, Thai, Arabic)."""
    letters = sum(unicodedata.category(character)[0] in "LMN" for character in visible)
    return letters >= _LETTERS * len(visible)
