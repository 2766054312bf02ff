"""Guesses at the next tokens of a text, looked up in the text itself: its ids in, what followed them last time out.

    drafts = Drafts()
    guessed = drafts.guess(ids, most=7)     # [] where the last tokens stand for the first time

The model reads the guesses in the same step as the newest token, each as a token of its own, and keeps as many as are
what it would have chosen: an answer is the same with guesses and without, bit for bit as long as no request gives way
for want of memory, and is there sooner where it repeats its prompt or itself. Speculative decoding (Leviathan et al.
2023, section 2.1) without a second model, known as prompt lookup decoding (Saxena 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

LENGTHS = (3, 2)
"""Tokens that must have stood together before, the longer stretch first."""
FIRST = 3
"""Tokens of a first guess; each that comes true whole is followed by one of twice the length and one."""
ROWS = 8
"""Tokens of all requests that a step reads at most where some are guesses: up to there they cost little beside the
reading of the weights."""


class Drafts:
    """What one text has had so far. Ids are only ever added to it."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], int] = {}  # where the text goes on after a stretch, the last time it came
        self._n_known = 0
        self._guess: list[int] = []
        self._at, self._n = 0, FIRST

    def guess(self, ids: Sequence[int], most: int) -> list[int]:
        """At most `most` ids that may follow `ids`."""
        for end in range(self._n_known, len(ids)):
            for length in LENGTHS:
                if end >= length:
                    self._next[tuple(ids[end - length : end])] = end
        self._n_known = len(ids)
        came_true = self._guess and ids[self._at : self._at + len(self._guess)] == self._guess
        self._n = 2 * self._n + 1 if came_true else FIRST
        self._at, self._guess = len(ids), []
        for length in LENGTHS:
            place = self._next.get(tuple(ids[-length:]))
            if place is not None:
                # Where the two stretches overlap, what comes between them comes again and again.
                period = len(ids) - place
                self._guess = [ids[place + i % period] for i in range(min(self._n, most))]
                break
        return self._guess
