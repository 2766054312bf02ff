"""Memory for a trunk of torch: rows in lanes of equal width side by side, kept beginnings of requests behind them.

Counts blocks and moves nothing itself: `kv_cache.KVCache` holds the numbers, `prefix_store.PrefixStore` the names of
what is kept. A row copies what it reuses.
"""

from __future__ import annotations

from collections.abc import Sequence

from talaria.infer.decode_graphs import DecodeGraphs
from talaria.infer.kv_cache import KVCache
from talaria.infer.prefix_store import BLOCK, PrefixStore, block_names, n_blocks_for
from talaria.infer.scheduler import Request

_RECORDED_WIDTHS = 256 // BLOCK
"""Lanes over which steps are recorded are so many blocks wide, or a multiple."""


class Lanes:
    """What `scheduler.Memory` says, over one cache. Without `prefixes` nothing is kept. `graphs` are steps over the
    cache that are recorded."""

    block = BLOCK

    def __init__(self, cache: KVCache, prefixes: PrefixStore | None, graphs: DecodeGraphs | None = None) -> None:
        self.cache, self.prefixes, self.graphs = cache, prefixes, graphs
        self.n_blocks = cache.n_blocks

    def n_held(self, rows: Sequence[Request]) -> int:
        return len(rows) * self.cache.width

    def grow(self, rows: Sequence[Request]) -> bool:
        """Widen the lanes where the longest row needs it."""
        if max(len(request.ids) for request in rows) <= self.cache.width * BLOCK:
            return True
        width = self._width(rows, len(rows))
        if width:
            self._lay_out(rows, len(rows), width)
        return bool(width)

    def has_room(self, rows: Sequence[Request], request: Request) -> bool:
        return bool(self._width([*rows, request], len(rows)))

    def n_known(self, request: Request) -> int:
        return len(self._known(request)) * BLOCK

    def join(self, rows: Sequence[Request], request: Request) -> None:
        width = self._width([*rows, request], len(rows))
        self._lay_out(rows, len(rows) + 1, width)  # the lanes may now cover what was known
        blocks = self._known(request)
        if blocks:
            self.cache.load(len(rows), blocks)
            request.length = len(blocks) * BLOCK

    def remember(self, rows: Sequence[Request], request: Request) -> None:
        if self.prefixes is None:
            return
        request.names = block_names(request.ids[: request.length], request.names[: request.length // BLOCK])
        places = self.prefixes.add(request.names)
        if places:
            self.cache.save(rows.index(request), places)

    def arrange(self, rows: Sequence[Request], order: Sequence[int]) -> None:
        longest = max((rows[row].length for row in order), default=0)
        self.cache.arrange(order, longest)
        self._lay_out([rows[row] for row in order], len(order), self.cache.width)

    def clear(self) -> None:
        if self.prefixes is not None:
            self.prefixes.set_boundary(0)
            self.prefixes.clear()
        self.cache.wipe()
        if self.graphs is not None:
            self.graphs.follow_weights()

    def _known(self, request: Request) -> list[int]:
        """Blocks of what is known of its beginning; two ids at least are left to read, as one goes through other
        kernels than the prompt that it ends."""
        if self.prefixes is None:
            return []
        request.names = block_names(request.ids[:-2], request.names)
        return self.prefixes.find(request.names)

    def _width(self, rows: Sequence[Request], n_rows: int) -> int:
        """Blocks a lane for these rows, as they are now with room to grow; 0 where memory does not allow it.

        Of the rows n_rows are there already, in lanes of the present width.
        """
        current, room = self.cache.width if n_rows else 0, self.cache.n_blocks // len(rows)
        most = max(n_blocks_for(request.n_positions) for request in rows)
        if most <= room:
            if most <= current <= room:
                return current
            # Every width is a step to record, and one that leaves no room for another row is no gain.
            wide = -(-most // _RECORDED_WIDTHS) * _RECORDED_WIDTHS
            return wide if self.graphs is not None and wide * (len(rows) + 1) <= self.cache.n_blocks else most
        need = max(n_blocks_for(len(request.ids)) for request in rows)
        if len(rows) > n_rows > 0:
            need += 1  # a newcomer that has to leave at the next block had better wait
        if need > room:
            return 0
        # Powers of two, so that moving the rows to wider lanes stays rare.
        return current if need <= current <= room else min(room, 1 << (need - 1).bit_length())

    def _lay_out(self, rows: Sequence[Request], n_rows: int, width: int) -> None:
        """Lanes for n_rows rows, those at hand among them; kept prefixes in their place are gone."""
        if self.prefixes is not None:
            self.prefixes.set_boundary(n_rows * width)
        if width != self.cache.width:
            longest = max((request.length for request in rows), default=0)
            self.cache.set_width(width, len(rows), longest)
        self.cache.claim(n_rows)
