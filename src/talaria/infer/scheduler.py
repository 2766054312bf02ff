"""Which requests run together: batches of similar prompt length, bounded in rows and in cache memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One prompt to continue: at most `max_tokens` tokens, and prompt and answer together fit the context."""

    index: int
    prompt_ids: list[int]
    max_tokens: int
    seed: int | None

    @property
    def capacity(self) -> int:
        """Cached positions it may need."""
        return len(self.prompt_ids) + self.max_tokens


def schedule(requests: Sequence[Request], max_batch_size: int, max_positions: int) -> list[list[Request]]:
    """Group requests, longest prompts first, so that a batch pads little and memory peaks at the start.

    A batch holds at most max_batch_size rows, and rows times their largest capacity stay within max_positions (one
    row is always let through).
    """
    batches: list[list[Request]] = []
    widest = 0
    for request in sorted(requests, key=lambda r: (-len(r.prompt_ids), r.index)):
        if batches:
            wider = max(widest, request.capacity)
            n_rows = len(batches[-1]) + 1
            if n_rows <= max_batch_size and n_rows * wider <= max_positions:
                batches[-1].append(request)
                widest = wider
                continue
        batches.append([request])
        widest = request.capacity
    return batches
