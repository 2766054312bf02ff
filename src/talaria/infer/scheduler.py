"""Who runs next: requests wait in the order they came, run together in rows, and give way when memory runs out.

Rows that have an answer under way come first in the batch, rows whose prompt is still being read behind them. A prompt
is read in chunks, so that those who are answering already wait for a bounded number of tokens. Where keys and values
lie is the memory's to know: `lanes.Lanes` for a trunk of torch, `pages.Pages` for a compiled one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from talaria.errors import UserError
from talaria.infer.contract import Chunk, Sampling, TopLogProbs
from talaria.infer.drafts import Drafts
from talaria.infer.grammar import Grammar
from talaria.infer.memory import POSITIONS_AT_ONCE
from talaria.infer.sampling import Penalties
from talaria.infer.text_stream import TextStream


@dataclass(eq=False)
class Request:
    """One prompt on its way: `ids` are the prompt and, behind it, the tokens of the answer.

    `uniforms` hold one number in [0, 1) for each token of the answer; none for a greedy one. `length` counts the
    positions in memory; `names` and `blocks` are the memory's. `inbox` receives the chunks where somebody inside the
    engine waits for them; a `whole` request gets a single one. `error` is set where the answer cannot go on. `guessed`
    are the tokens that `drafts` says may follow, read in this step beside the newest.
    """

    id: int
    ids: list[int]
    n_prompt: int
    max_tokens: int
    sampling: Sampling
    uniforms: list[float]
    text: TextStream
    inbox: deque[Chunk] | None = None
    whole: bool = False
    penalties: Penalties | None = None
    grammar: Grammar | None = None
    drafts: Drafts | None = None
    error: UserError | None = None
    length: int = 0
    is_read: bool = False
    names: list[bytes] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    guessed: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top_log_probs: list[TopLogProbs] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    @property
    def n_generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - self.n_prompt

    @property
    def is_silent(self) -> bool:
        """Whether nobody wants to know of a token before the answer has ended."""
        return self.whole and self.grammar is None and not self.sampling.stop

    @property
    def n_positions(self) -> int:
        """Positions that it takes at its longest; the last token of an answer is never read."""
        return self.n_prompt + self.max_tokens - 1


@dataclass(frozen=True)
class Plan:
    """One step: rows 0..len(decode)-1 read their newest token, those behind them the next `chunks` of their ids."""

    decode: list[Request]
    prefill: list[Request]
    chunks: list[int]


class Memory(Protocol):
    """Keys and values of the rows, and of earlier requests' beginnings, in `n_blocks` blocks of `block` positions.

    `rows` are always the scheduler's, in their order.
    """

    n_blocks: int
    block: int

    def n_held(self, rows: Sequence[Request]) -> int:
        """Blocks that the rows hold."""
        ...

    def grow(self, rows: Sequence[Request]) -> bool:
        """Room for all ids of every row; False, and nothing done, where there is not enough."""
        ...

    def has_room(self, rows: Sequence[Request], request: Request) -> bool:
        """Whether one more row finds room beside the others."""
        ...

    def n_known(self, request: Request) -> int:
        """Positions of its beginning that need not be computed; never its last id, from which the next token comes.
        Sets the `names` of its blocks, as many as could be kept."""
        ...

    def join(self, rows: Sequence[Request], request: Request) -> None:
        """Room for one more row behind the others, with what is known of its beginning: that is its `length`."""
        ...

    def remember(self, rows: Sequence[Request], request: Request) -> None:
        """Keep the full blocks of a row for requests that begin alike."""
        ...

    def arrange(self, rows: Sequence[Request], order: Sequence[int]) -> None:
        """Row i becomes what row order[i] was; those not named are gone."""
        ...

    def clear(self) -> None:
        """Forget everything, after an error."""
        ...


class Scheduler:
    """Rows and waiting requests over one memory."""

    def __init__(self, memory: Memory, max_rows: int, prefill_chunk: int) -> None:
        self.memory, self.max_rows, self.prefill_chunk = memory, max_rows, prefill_chunk
        self.waiting: deque[Request] = deque()
        self.rows: list[Request] = []
        self.n_preempted = 0

    @property
    def n_free_blocks(self) -> int:
        """Blocks that no row holds; those with a kept prefix count, for they give way at once."""
        return self.memory.n_blocks - self.memory.n_held(self.rows)

    def plan(self) -> Plan:
        """Make room for the rows that run, then read as much of the waiting prompts as the step has room for."""
        while self.rows and not self.memory.grow(self.rows):
            self._preempt(max(self.rows, key=lambda request: request.id))
        decode = [request for request in self.rows if request.is_read]
        budget = max(1, self.prefill_chunk - len(decode)) if decode else POSITIONS_AT_ONCE
        prefill = self.rows[len(decode) :]
        share = max(1, budget // max(1, len(prefill)))
        chunks = [_chunk(len(request.ids) - request.length, share) for request in prefill]
        while self.waiting and len(self.rows) < self.max_rows:
            chunk = self._admit(self.waiting[0], budget, chunks)
            if not chunk:
                break
            prefill.append(self.waiting.popleft())
            chunks.append(chunk)
        return Plan(decode, prefill, chunks)

    def remember(self, request: Request) -> None:
        """Keep what was computed of a row for requests that begin alike."""
        self.memory.remember(self.rows, request)

    def leave(self, gone: Iterable[Request]) -> None:
        """Drop requests, running or waiting; the rows that stay close up, those that are read in front."""
        left = {id(request) for request in gone}
        if any(id(request) in left for request in self.waiting):
            self.waiting = deque(request for request in self.waiting if id(request) not in left)
        stay = [row for row, request in enumerate(self.rows) if id(request) not in left]
        if len(stay) < len(self.rows):
            self._arrange(stay)

    def settle(self) -> None:
        """Bring the rows whose prompt is now read before those that are still being read."""
        n_read = sum(request.is_read for request in self.rows)
        if not all(request.is_read for request in self.rows[:n_read]):
            self._arrange(list(range(len(self.rows))))

    def drop_all(self) -> None:
        """Forget every request and every kept prefix, after an error."""
        self.waiting.clear()
        self.rows.clear()
        self.memory.clear()

    def _preempt(self, request: Request) -> None:
        """A row gives its memory back and waits in front; what it had computed is read again."""
        self.leave([request])
        request.length, request.is_read = 0, False
        self.waiting.appendleft(request)
        self.n_preempted += 1

    def _admit(self, request: Request, budget: int, chunks: list[int]) -> int:
        """Give a waiting request a row and what is known of its prefix; returns how many ids to read, 0 for not yet."""
        if not self.memory.has_room(self.rows, request):
            return 0
        known = self.memory.n_known(request)
        if self._is_being_read(request, known // self.memory.block):
            return 0
        chunk = len(request.ids) - known
        if (len(chunks) + 1) * max([chunk, *chunks]) > budget:
            if chunks:
                return 0
            chunk = budget
        self.memory.join(self.rows, request)
        self.rows.append(request)
        return _chunk(len(request.ids) - request.length, chunk)

    def _is_being_read(self, request: Request, known: int) -> bool:
        """Whether a row is just computing the block that the request needs first: then it waits for it."""
        if known == len(request.names):
            return False
        wanted = request.names[known]
        return any(known < len(row.names) and row.names[known] == wanted for row in self.rows if not row.is_read)

    def _arrange(self, stay: list[int]) -> None:
        """Rows `stay` remain, those that are read in front; as few as possible move."""
        read = [row for row in stay if self.rows[row].is_read]
        unread = [row for row in stay if not self.rows[row].is_read]
        order = list(range(len(stay)))
        for rows, places in ((read, range(len(read))), (unread, range(len(read), len(stay)))):
            holes = sorted(set(places).difference(rows))
            for hole, row in zip(holes, (row for row in rows if row not in places), strict=True):
                order[hole] = row
        self.memory.arrange(self.rows, order)
        self.rows = [self.rows[row] for row in order]


def _chunk(n_left: int, most: int) -> int:
    """Ids to read next. A last one is not left alone: a single position goes through other kernels than several do."""
    return max(1, most - 1) if n_left == most + 1 else min(n_left, most)
