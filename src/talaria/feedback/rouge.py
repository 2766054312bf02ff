"""ROUGE-L of two short texts: how much of both their longest common subsequence of words covers.

rouge_l(words("Write a poem."), words("Write a short poem"))      # 0.857: 3 words of 3 and of 4
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# As rouge_score tokenises, lower-case runs of letters and digits, but for writing without spaces, a character each.
_WORD = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff]|[^\W_\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff]+")


def words(text: str) -> list[str]:
    """Words in lower case; Chinese characters one by one; punctuation is left out."""
    return _WORD.findall(text.lower())


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """F1 of precision and recall of the longest common subsequence (Lin 2004, section 3.1, beta 1); 0 without words."""
    if not first or not second:
        return 0.0
    return 2 * common_subsequence(first, second) / (len(first) + len(second))


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table in one integer (Hyyro 2004): len(second) steps."""
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(first) - row.bit_count()
