"""Menus and notices: lines that recur in many documents, and only at their heads and feet.

That a line recurs is not enough: set phrases, answers and refrains recur too, but they stand inside texts as well.
Very short documents, which have no inside, are no evidence. Two passes: `LineCounts.add` every document, then `strip`
each. Memory does not grow with the corpus.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_SLOTS = 1 << 20
_EDGE = 3  # lines at each end of a document, or a fifth of its lines, that count as its head and foot
_INSIDE = 0.05  # a notice stands elsewhere in no larger share of its documents
_CODE_CHARACTERS = re.compile(r"[{}()\[\];=<>_\\&$]")  # not those of menus and Markdown: | * # -
_CODE_SHARE = 0.06  # prose stays below 0.02, programs above 0.08


class LineCounts:
    """In how many documents each line occurs, and in how many of them inside, as count-min sketches.

    (Cormode and Muthukrishnan 2005.) A count may be too high by what shares both its slots: about lines / 2**20 for
    each of them, far below the threshold, which grows with the number of documents too.
    """

    def __init__(self, share: float, least_documents: int) -> None:
        self._documents = np.zeros((2, _SLOTS), dtype=np.uint32)
        self._inside = np.zeros((2, _SLOTS), dtype=np.uint32)
        self._share, self._least = share, least_documents
        self.n_documents = 0

    def add(self, text: str) -> None:
        """Count the document's lines, each once, if it has an inside."""
        lines = [line for line in text.split("\n") if line.strip()]
        edge = max(_EDGE, len(lines) // 5)
        if len(lines) <= 2 * edge:
            return
        self.n_documents += 1
        _count(self._documents, set(lines))
        _count(self._inside, set(lines[edge : len(lines) - edge]))

    def strip(self, text: str) -> tuple[str, int]:
        """`text` without the notices at its head and foot, and how many lines they were. Code stays as it is."""
        if is_code(text):
            return text, 0
        lines = text.split("\n")
        head = _run_of(self._is_notice(line) for line in lines)
        foot = _run_of(self._is_notice(line) for line in reversed(lines[head:]))
        removed = [line for line in (*lines[:head], *lines[len(lines) - foot :]) if line.strip()]
        if not removed:
            return text, 0
        return "\n".join(lines[head : len(lines) - foot]).strip("\n"), len(removed)

    def _is_notice(self, line: str) -> bool | None:
        """None for a blank line, which goes with its neighbours."""
        if not line.strip():
            return None
        slots = _slots(line)
        documents = min(int(row[slot]) for row, slot in zip(self._documents, slots, strict=True))
        inside = min(int(row[slot]) for row, slot in zip(self._inside, slots, strict=True))
        return documents >= max(self._least, self._share * self.n_documents) and inside <= _INSIDE * documents


def is_code(text: str) -> bool:
    """Whether brackets, operators and the like make up the share of the text that is usual in programs and markup."""
    solid = len(text) - sum(map(text.count, (" ", "\n", "\t")))
    return solid > 0 and len(_CODE_CHARACTERS.findall(text)) / solid >= _CODE_SHARE


def _run_of(flags: Iterator[bool | None]) -> int:
    """Length of the run of frequent lines at the start, up to its last frequent line."""
    end = 0
    for place, flag in enumerate(flags, start=1):
        if flag is False:
            break
        if flag:
            end = place
    return end


def _count(sketch: npt.NDArray[np.uint32], lines: set[str]) -> None:
    if lines:
        for row, slots in zip(sketch, np.array([_slots(line) for line in lines]).T, strict=True):
            row[np.unique(slots)] += 1


def _slots(line: str) -> tuple[int, int]:
    data = line.strip().encode("utf-8", "surrogatepass")
    return zlib.crc32(data) % _SLOTS, zlib.adler32(data, zlib.crc32(data, 1)) % _SLOTS
