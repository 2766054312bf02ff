"""Memory for a compiled trunk: every row has blocks anywhere, and rows that begin alike share them.

Counts blocks; the numbers are in the reader.

A block is free, or held by one or more rows, or kept: held by none, but named (`prefix_store.block_names`), so that a
request that begins alike takes it up again; the least recently held gives way first. A named block is full, so nobody
ever writes into a block that somebody shares.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

from talaria.infer.prefix_store import block_names, n_blocks_for
from talaria.infer.scheduler import Request
from talaria.model.compiled import PAGE, PagedReader


class Pages:
    """What `scheduler.Memory` says, over the blocks of a reader. Without `keep` no block outlives its row."""

    block = PAGE

    def __init__(self, reader: PagedReader, n_blocks: int, keep: bool = True) -> None:
        self.reader, self.n_blocks, self.keep = reader, n_blocks, keep
        self.clear()

    def clear(self) -> None:
        self._free = list(range(self.n_blocks))
        self._holders: Counter[int] = Counter()
        self._kept: OrderedDict[int, None] = OrderedDict()  # least recently held first
        self._named: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}

    def n_held(self, rows: Sequence[Request]) -> int:
        return len(self._holders)

    def grow(self, rows: Sequence[Request]) -> bool:
        missing = [n_blocks_for(len(request.ids), PAGE) - len(request.blocks) for request in rows]
        if sum(missing) > len(self._free) + len(self._kept):
            return False
        for request, n in zip(rows, missing, strict=True):
            request.blocks += [self._take() for _ in range(n)]
        return True

    def has_room(self, rows: Sequence[Request], request: Request) -> bool:
        known = self._known(request)
        need = n_blocks_for(len(request.ids), PAGE) - len(known)
        if rows:
            need += 1  # a newcomer that has to leave at the next block had better wait
        return need <= len(self._free) + len(self._kept) - sum(block in self._kept for block in known)

    def n_known(self, request: Request) -> int:
        return len(self._known(request)) * PAGE

    def join(self, rows: Sequence[Request], request: Request) -> None:
        request.blocks = self._known(request)
        request.length = len(request.blocks) * PAGE
        for block in request.blocks:
            self._holders[block] += 1
            self._kept.pop(block, None)
        request.blocks += [self._take() for _ in range(n_blocks_for(len(request.ids), PAGE) - len(request.blocks))]

    def remember(self, rows: Sequence[Request], request: Request) -> None:
        """Its prompt alone: what an answer left differs in the last bits from what reading it would."""
        if not self.keep:
            return
        length = min(request.length, request.n_prompt)
        request.names = block_names(request.ids[:length], request.names[: length // PAGE], PAGE)
        for name, block in zip(request.names, request.blocks, strict=False):
            if name not in self._named:
                self._named[name] = block
                self._names[block] = name

    def arrange(self, rows: Sequence[Request], order: Sequence[int]) -> None:
        stay = set(order)
        for row, request in enumerate(rows):
            if row not in stay:
                self._release(request)

    def _release(self, request: Request) -> None:
        # The first block goes last: a block is of no use once one before it is gone.
        for block in reversed(request.blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                del self._holders[block]
                if block in self._names:
                    self._kept[block] = None
                else:
                    self._free.append(block)
        request.blocks = []

    def _take(self) -> int:
        """A block that nobody holds, the least recently held of the kept ones where none is free."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._kept.popitem(last=False)
            del self._named[self._names.pop(block)]
        self._holders[block] = 1
        return block

    def _known(self, request: Request) -> list[int]:
        """Blocks of the longest known beginning; two ids at least are left to read, as one goes through other kernels
        than the prompt that it ends."""
        if not self.keep:
            return []
        if not request.names or len(request.names) * PAGE + PAGE <= len(request.ids) - 2:
            request.names = block_names(request.ids[: max(0, len(request.ids) - 2)], request.names, PAGE)
        found = []
        for name in request.names:
            if name not in self._named:
                break
            found.append(self._named[name])
        return found
