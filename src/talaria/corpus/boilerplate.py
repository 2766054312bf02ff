"""Menus and notices: lines at the head or foot of a document that recur in a large share of all documents.

Two passes: `LineCounts.add` every document, then `strip` each. Memory does not grow with the corpus.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

import numpy as np

_SLOTS = 1 << 20
_EDGE = 30  # lines from each end that are looked at
_CODE_CHARACTERS = re.compile(r"[{}()\[\];=<>_\\#$&*+/|^~`]")
_CODE_SHARE = 0.06  # prose stays below 0.02, programs above 0.08


class LineCounts:
    """In how many documents each edge line occurs, as a count-min sketch (Cormode and Muthukrishnan 2005).

    A count may be too high by the documents that share both its slots: about lines / 2**20 for each of them, far
    below the threshold, which grows with the number of documents too.
    """

    def __init__(self, share: float, least_documents: int) -> None:
        self._counts = np.zeros((2, _SLOTS), dtype=np.uint32)
        self._share, self._least = share, least_documents
        self.n_documents = 0

    def add(self, text: str) -> None:
        """Count the document's edge lines, each once."""
        self.n_documents += 1
        lines = text.split("\n")
        edges = {line for line in (*lines[:_EDGE], *lines[-_EDGE:]) if line.strip()}
        if edges:
            slots = np.array([_slots(line) for line in edges])
            self._counts[0, np.unique(slots[:, 0])] += 1
            self._counts[1, np.unique(slots[:, 1])] += 1

    def strip(self, text: str) -> tuple[str, int]:
        """`text` without the frequent lines at its head and foot, and how many they were. Code stays as it is."""
        if is_code(text):
            return text, 0
        lines = text.split("\n")
        head = _run_of(self._frequent(line) for line in lines[:_EDGE])
        foot = _run_of(self._frequent(line) for line in reversed(lines[head:][-_EDGE:]))
        removed = [line for line in (*lines[:head], *lines[len(lines) - foot :]) if line.strip()]
        if not removed:
            return text, 0
        return "\n".join(lines[head : len(lines) - foot]).strip("\n"), len(removed)

    def _frequent(self, line: str) -> bool | None:
        """None for a blank line, which goes with its neighbours."""
        if not line.strip():
            return None
        first, second = _slots(line)
        count = min(int(self._counts[0, first]), int(self._counts[1, second]))
        return count >= max(self._least, self._share * self.n_documents)


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


def _slots(line: str) -> tuple[int, int]:
    data = line.strip().encode("utf-8", "surrogatepass")
    return zlib.crc32(data) % _SLOTS, zlib.adler32(data, zlib.crc32(data, 1)) % _SLOTS
