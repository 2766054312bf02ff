"""Tokens in, text out as soon as it is certain: whole UTF-8 characters, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the bytes of successive tokens into text.

    Bytes of a character whose rest has not come are held back, and so is an ending that may grow into a stop string.
    The pieces joined are the text up to the first stop string, or all of it; bytes that never form a character
    become U+FFFD.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stop = tuple(stop)
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token: bytes) -> str:
        """Add one token's bytes; returns the text that is now certain."""
        return self._release(self._decoder.decode(token))

    def finish(self) -> str:
        """No more tokens come; returns what was held back."""
        return self._release(self._decoder.decode(b"", final=True), final=True)

    def _release(self, new: str, final: bool = False) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        n_held = 0 if final else max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest ending of `text` that begins `stop` and is shorter than it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
