"""Which blocks of the cache hold a prefix that was computed before: token ids in, block numbers out. No torch.

A block is named by the hash of its own token ids and of all before them, so equal names mean equal prefixes (16 bytes
of BLAKE2b). Rows copy what they reuse, so nothing in the store is ever in use: the least recently used goes first when
room is needed, and everything below `boundary` goes when the rows grow.
"""

from __future__ import annotations

import heapq
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

BLOCK = 16
"""Positions in a block: the unit of memory and of reuse."""


def n_blocks_for(n_positions: int, size: int = BLOCK) -> int:
    """Blocks of `size` that hold n_positions."""
    return -(-n_positions // size)


def block_names(ids: Sequence[int], before: Sequence[bytes] = (), size: int = BLOCK) -> list[bytes]:
    """Names of the full blocks of `ids`; `before` are the names of its first blocks where they are known."""
    names = list(before)
    name = names[-1] if names else b""
    for start in range(len(names) * size, len(ids) - size + 1, size):
        name = blake2b(name + array("q", ids[start : start + size]).tobytes(), digest_size=16).digest()
        names.append(name)
    return names


class PrefixStore:
    """Names of the blocks `boundary`..n_blocks-1; those below belong to the rows."""

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self.boundary = 0
        self._blocks: OrderedDict[bytes, int] = OrderedDict()  # least recently used first
        self._names: dict[int, bytes] = {}
        self._free = set(range(n_blocks))

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, names: Sequence[bytes]) -> list[int]:
        """Blocks of the longest known prefix of `names`, now the most recently used."""
        found = []
        for name in names:
            if name not in self._blocks:
                break
            found.append(self._blocks[name])
        # The first block is touched last: a block is of no use once one before it is gone.
        for name in reversed(names[: len(found)]):
            self._blocks.move_to_end(name)
        return found

    def add(self, names: Sequence[bytes]) -> list[tuple[int, int]]:
        """Make room for the blocks that are not there yet: (index in `names`, block to fill) for each that found some.

        Older prefixes give way; where even that is too little the first blocks are kept.
        """
        missing = [index for index, name in enumerate(names) if name not in self._blocks]
        self.find(names)  # so that this prefix's own first blocks do not give way to its last ones
        missing = missing[: len(self._free) + len(self._blocks) - (len(names) - len(missing))]
        while len(self._free) < len(missing):
            self._evict(next(iter(self._blocks.values())))
        # The rows grow from below, so the highest numbers last longest.
        blocks = heapq.nlargest(len(missing), self._free)
        self._free.difference_update(blocks)
        placed = list(zip(missing, blocks, strict=True))
        for index, block in reversed(placed):
            self._blocks[names[index]] = block
            self._names[block] = names[index]
        return placed

    def set_boundary(self, boundary: int) -> None:
        """Give the blocks below `boundary` to the rows, and take back what they no longer need."""
        assert 0 <= boundary <= self.n_blocks
        for block in range(self.boundary, boundary):
            if block in self._names:
                self._evict(block)
        self._free.difference_update(range(self.boundary, boundary))
        self._free.update(range(boundary, self.boundary))
        self.boundary = boundary

    def clear(self) -> None:
        """Forget every prefix."""
        self._free.update(self._names)
        self._blocks.clear()
        self._names.clear()

    def _evict(self, block: int) -> None:
        del self._blocks[self._names.pop(block)]
        self._free.add(block)
