"""Who runs next: requests wait in the order they came, run together in rows, and give way when memory runs out.

Rows that have an answer under way come first in the batch, rows whose prompt is still being read behind them. A prompt
is read in chunks, so that those who are answering already wait for a bounded number of tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from talaria.errors import UserError
from talaria.infer.contract import Chunk, Sampling, TopLogProbs
from talaria.infer.grammar import Grammar
from talaria.infer.kv_cache import KVCache
from talaria.infer.memory import POSITIONS_AT_ONCE
from talaria.infer.prefix_store import BLOCK, PrefixStore, block_names, n_blocks_for
from talaria.infer.sampling import Penalties
from talaria.infer.text_stream import TextStream


@dataclass(eq=False)
class Request:
    """One prompt on its way: `ids` are the prompt and, behind it, the tokens of the answer.

    `uniforms` hold one number in [0, 1) for each token of the answer; none for a greedy one. `length` counts the
    positions in the cache. `inbox` receives the chunks where somebody inside the engine waits for them; a `whole`
    request gets a single one. `error` is set where the answer cannot go on.
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
    error: UserError | None = None
    length: int = 0
    is_read: bool = False
    names: list[bytes] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top_log_probs: list[TopLogProbs] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    @property
    def n_generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - self.n_prompt

    @property
    def n_blocks(self) -> int:
        """Blocks that hold it at its longest; the last token of an answer is never read."""
        return n_blocks_for(self.n_prompt + self.max_tokens - 1)


@dataclass(frozen=True)
class Plan:
    """One step: rows 0..len(decode)-1 read their newest token, those behind them the next `chunks` of their ids."""

    decode: list[Request]
    prefill: list[Request]
    chunks: list[int]


class Scheduler:
    """Rows and waiting requests over one cache. `rows[i]` is row i of the cache."""

    def __init__(self, cache: KVCache, max_rows: int, prefill_chunk: int, prefixes: PrefixStore | None) -> None:
        self.cache, self.max_rows, self.prefill_chunk = cache, max_rows, prefill_chunk
        self.prefixes = prefixes
        self.waiting: deque[Request] = deque()
        self.rows: list[Request] = []
        self.n_preempted = 0

    @property
    def n_free_blocks(self) -> int:
        """Blocks that no row holds; those with a kept prefix count, for they give way at once."""
        return self.cache.n_blocks - len(self.rows) * self.cache.width

    def plan(self) -> Plan:
        """Make room for the rows that run, then read as much of the waiting prompts as the step has room for."""
        self._grow()
        decode = [request for request in self.rows if request.is_read]
        budget = max(1, self.prefill_chunk - len(decode)) if decode else POSITIONS_AT_ONCE
        prefill = self.rows[len(decode) :]
        share = max(1, budget // max(1, len(prefill)))
        chunks = [min(len(request.ids) - request.length, share) for request in prefill]
        while self.waiting and len(self.rows) < self.max_rows:
            chunk = self._admit(self.waiting[0], budget, chunks)
            if not chunk:
                break
            prefill.append(self.waiting.popleft())
            chunks.append(chunk)
        return Plan(decode, prefill, chunks)

    def remember(self, request: Request) -> None:
        """Keep the full blocks of a row for requests that begin alike."""
        if self.prefixes is None:
            return
        request.names = block_names(request.ids[: request.length], request.names[: request.length // BLOCK])
        places = self.prefixes.add(request.names)
        if places:
            self.cache.save(self.rows.index(request), places)

    def leave(self, gone: Iterable[Request]) -> None:
        """Drop requests, running or waiting; the rows that stay close up, those that are read in front."""
        left = {id(request) for request in gone}
        if any(id(request) in left for request in self.waiting):
            self.waiting = deque(request for request in self.waiting if id(request) not in left)
        stay = [row for row, request in enumerate(self.rows) if id(request) not in left]
        if len(stay) < len(self.rows):
            self._arrange(stay)
            self._lay_out(len(self.rows), self.cache.width)

    def settle(self) -> None:
        """Bring the rows whose prompt is now read before those that are still being read."""
        n_read = sum(request.is_read for request in self.rows)
        if not all(request.is_read for request in self.rows[:n_read]):
            self._arrange(list(range(len(self.rows))))

    def drop_all(self) -> None:
        """Forget every request and every kept prefix, after an error."""
        self.waiting.clear()
        self.rows.clear()
        if self.prefixes is not None:
            self.prefixes.set_boundary(0)
            self.prefixes.clear()
        self.cache.wipe()

    def _grow(self) -> None:
        """Widen the lanes for the longest row; where memory is out the newest request gives its row back."""
        while self.rows and max(len(request.ids) for request in self.rows) > self.cache.width * BLOCK:
            width = self._width(self.rows)
            if width:
                self._lay_out(len(self.rows), width)
                return
            newest = max(self.rows, key=lambda request: request.id)
            self.leave([newest])
            newest.length, newest.is_read = 0, False
            self.waiting.appendleft(newest)
            self.n_preempted += 1

    def _admit(self, request: Request, budget: int, chunks: list[int]) -> int:
        """Give a waiting request a row and what is known of its prefix; returns how many ids to read, 0 for not yet."""
        width = self._width([*self.rows, request])
        if not width:
            return 0
        # The last id is read in any case: the next token comes from it.
        request.names = block_names(request.ids[:-1], request.names) if self.prefixes is not None else []
        if self._is_being_read(request):
            return 0
        known = len(self.prefixes.find(request.names)) * BLOCK if self.prefixes is not None else 0
        chunk = len(request.ids) - known
        if (len(chunks) + 1) * max([chunk, *chunks]) > budget:
            if chunks:
                return 0
            chunk = budget
        row = len(self.rows)
        self._lay_out(row + 1, width)  # the lanes may now cover what was known
        self.rows.append(request)
        if self.prefixes is not None and (blocks := self.prefixes.find(request.names)):
            self.cache.load(row, blocks)
            request.length = len(blocks) * BLOCK
        return min(chunk, len(request.ids) - request.length)

    def _is_being_read(self, request: Request) -> bool:
        """Whether a row is just computing the block that the request needs first: then it waits and copies it."""
        if self.prefixes is None:
            return False
        known = len(self.prefixes.find(request.names))
        if known == len(request.names):
            return False
        wanted = request.names[known]
        return any(known < len(row.names) and row.names[known] == wanted for row in self.rows if not row.is_read)

    def _width(self, rows: list[Request]) -> int:
        """Blocks a lane for these rows, as they are now with room to grow; 0 where memory does not allow it."""
        current, room = self.cache.width if self.rows else 0, self.cache.n_blocks // len(rows)
        most = max(request.n_blocks for request in rows)
        if most <= room:
            return current if most <= current <= room else most
        need = max(n_blocks_for(len(request.ids)) for request in rows)
        if len(rows) > len(self.rows) > 0:
            need += 1  # a newcomer that has to leave at the next block had better wait
        if need > room:
            return 0
        # Powers of two, so that moving the rows to wider lanes stays rare.
        return current if need <= current <= room else min(room, 1 << (need - 1).bit_length())

    def _lay_out(self, n_rows: int, width: int) -> None:
        """Lanes for n_rows rows, those at hand among them; kept prefixes in their place are gone."""
        if self.prefixes is not None:
            self.prefixes.set_boundary(n_rows * width)
        if width != self.cache.width:
            longest = max((request.length for request in self.rows), default=0)
            self.cache.set_width(width, len(self.rows), longest)
        self.cache.claim(n_rows)

    def _arrange(self, stay: list[int]) -> None:
        """Rows `stay` remain, those that are read in front; as few as possible move."""
        read = [row for row in stay if self.rows[row].is_read]
        unread = [row for row in stay if not self.rows[row].is_read]
        order = list(range(len(stay)))
        for rows, places in ((read, range(len(read))), (unread, range(len(read), len(stay)))):
            holes = sorted(set(places).difference(rows))
            for hole, row in zip(holes, (row for row in rows if row not in places), strict=True):
                order[hole] = row
        longest = max((self.rows[row].length for row in stay), default=0)
        self.cache.arrange(order, longest)
        self.rows = [self.rows[row] for row in order]
