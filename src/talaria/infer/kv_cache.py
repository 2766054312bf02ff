"""Keys and values of every earlier position: one piece of memory, counted in blocks, for rows and reusable prefixes.

torch has no attention over scattered blocks on a CPU: gathering them at every step costs two to eight times the
attention itself, one call a row two to five times. So the running rows lie side by side in lanes of equal width, a
whole number of blocks, from the front of the memory; the blocks behind the last lane keep prefixes of earlier requests,
which are copied into a lane when a request begins with one.

    | lane 0: width blocks | lane 1 | ... | lane n_rows-1 | free and kept blocks ... |
                                                          ^ n_rows * width

Legend: B rows of this run, K key-value heads, T new positions, S positions seen, E head width, W blocks in a lane.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from talaria.infer.prefix_store import BLOCK
from talaria.model.shape import ModelShape


class KVCache:
    """`n_blocks` blocks for the keys and values of all layers, and with `spare` one position behind them, for rows that
    nobody asked for.

    Around each run of the model `begin_decode` or `begin_prefill` says which rows it is for; the model then calls
    `update` (and `carry`) in each layer.
    """

    def __init__(
        self,
        shape: ModelShape,
        n_blocks: int,
        max_rows: int,
        dtype: torch.dtype,
        device: torch.device,
        spare: bool = False,
    ) -> None:
        self.n_blocks = n_blocks
        self.width = 0
        self._heads, self._d_head = shape.n_kv_heads, shape.d_head
        self.max_rows = max_rows
        self._device, self._dtype = device, dtype
        position = shape.n_kv_heads * shape.d_head
        size = n_blocks * BLOCK * position
        # Keys and values of layer 0, of layer 1, ...; on a CPU memory is taken when it is first written.
        self._stored = [
            torch.empty(size + spare * position, dtype=dtype, device=device) for _ in range(2 * shape.n_layers)
        ]
        self._as_blocks = [stored[:size].view(n_blocks, self._heads, BLOCK, self._d_head) for stored in self._stored]
        self._lanes: list[Tensor] = []
        self._n_written = 0
        self._carried: dict[str, Tensor] = {}
        self._rows = slice(0, 0)
        self._last_B1: Tensor = torch.empty(0)
        self._index: Tensor | int | tuple[Tensor, Tensor, Tensor] | None = None
        self._seen = 0
        self._of: Tensor | None = None

    @staticmethod
    def bytes_per_block(shape: ModelShape, dtype: torch.dtype) -> int:
        """Memory of one block in all layers."""
        return 2 * shape.n_layers * shape.n_kv_heads * shape.d_head * dtype.itemsize * BLOCK

    def set_width(self, width: int, n_rows: int, longest: int) -> None:
        """Lanes of `width` blocks from now on; the first `longest` positions of `n_rows` rows move with them."""
        old = self._lanes
        n_lanes = self.n_blocks // width
        per_lane = width * BLOCK * self._heads * self._d_head
        self.width = width
        self._lanes = [
            stored[: n_lanes * per_lane].view(n_lanes, self._heads, width * BLOCK, self._d_head)
            for stored in self._stored
        ]
        self.claim(n_rows)
        if n_rows:
            for before, after in zip(old, self._lanes, strict=True):
                after[:n_rows, :, :longest] = before[:n_rows, :, :longest].clone()

    def claim(self, n_rows: int) -> None:
        """Make the first n_rows lanes fit to be read: a hidden position has weight 0, but 0 times NaN is NaN."""
        n_used = n_rows * self.width
        if n_used > self._n_written:
            per_block = BLOCK * self._heads * self._d_head
            for stored in self._stored:
                stored[self._n_written * per_block : n_used * per_block].zero_()
            self._n_written = n_used

    def wipe(self) -> None:
        """Trust nothing that was written; for after an error."""
        self._n_written = 0
        self._carried.clear()

    def load(self, row: int, blocks: Sequence[int]) -> None:
        """Copy kept blocks to the beginning of a row."""
        index = torch.tensor(blocks, device=self._device)
        for blocked, lanes in zip(self._as_blocks, self._lanes, strict=True):
            lanes[row, :, : len(blocks) * BLOCK] = blocked[index].transpose(0, 1).flatten(1, 2)

    def save(self, row: int, places: Sequence[tuple[int, int]]) -> None:
        """Copy blocks of a row, (index in the row, block to fill) each, to behind the lanes."""
        index = torch.tensor([place for place, _ in places], device=self._device)
        target = torch.tensor([block for _, block in places], device=self._device)
        for blocked, lanes in zip(self._as_blocks, self._lanes, strict=True):
            row_KWBE = lanes[row].view(self._heads, self.width, BLOCK, self._d_head)
            blocked[target] = row_KWBE[:, index].transpose(0, 1)

    @torch.inference_mode()  # what the model computed in this mode may be changed in no other
    def arrange(self, order: Sequence[int], longest: int) -> None:
        """Row i becomes what row order[i] was; `longest` positions are worth moving."""
        moved = [row for row, old in enumerate(order) if row != old]
        if not moved:
            return
        to = torch.tensor(moved, device=self._device)
        of = torch.tensor([order[row] for row in moved], device=self._device)
        for lanes in self._lanes:
            lanes[to, :, :longest] = lanes[of, :, :longest]
        for values in self._carried.values():
            values[to] = values[of]

    def begin_decode(self, lengths: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """One new position for each of the first rows, which hold `lengths` positions: positions_B1 and the mask.

        The mask is added to the scores, (B, 1, 1, S), or None where every row sees all.
        """
        n_rows = len(lengths)
        self._rows = slice(0, n_rows)
        self._seen = max(lengths) + 1
        lengths_B1 = torch.tensor(lengths, device=self._device)[:, None]
        if n_rows == 1:
            self._index = lengths[0]
            return lengths_B1, None
        self._index = torch.from_numpy(self.places(lengths, n_rows)).to(self._device)
        if min(lengths) == max(lengths):
            return lengths_B1, None
        return lengths_B1, self._mask(lengths_B1)

    def begin_decode_at(self, lengths_B1: Tensor, places_BK: Tensor, seen: int) -> Tensor:
        """As `begin_decode`, of what lies on the device, where nothing is asked that the host would have to wait for:
        all rows see `seen` positions, less those that the mask (B, 1, 1, S) hides."""
        self._rows, self._index, self._seen = slice(0, len(lengths_B1)), places_BK, seen
        return self._mask(lengths_B1)

    def places(self, lengths: Sequence[int], n_rows: int) -> NDArray[np.int64]:
        """Where `update` puts the next position of the first rows, (n_rows x K), counted in vectors of the memory; of
        rows without a length, the last of the n_rows, where nobody reads."""
        places_BK = np.full((n_rows, self._heads), self.n_blocks * BLOCK * self._heads) + np.arange(self._heads)
        lane_K = np.arange(self._heads) * self.width * BLOCK
        row_B1 = np.arange(len(lengths))[:, None] * self._heads * self.width * BLOCK
        places_BK[: len(lengths)] = row_B1 + lane_K + np.array(lengths)[:, None]
        return places_BK.reshape(-1)

    def begin_prefill(
        self, first: int, starts: Sequence[int], n_new: Sequence[int], of: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """New positions for the rows from `first` on, which hold `starts` positions each and get `n_new`, padded on
        the right: positions_BT and the mask, (B, 1, T, S), or None where causal attention is enough. With `of` row i
        gets what the model reads as row of[i]; all start at 0 then, and the positions are the same for all (1, T)."""
        longest = max(n_new)
        self._rows = slice(first, first + len(starts))
        starts_B1 = torch.tensor(starts, device=self._device)[:, None]
        new_B1 = torch.tensor(n_new, device=self._device)[:, None]
        steps_T = torch.arange(longest, device=self._device)
        positions_BT = starts_B1 + torch.minimum(steps_T, new_B1 - 1)  # padding stays inside the context
        self._last_B1 = new_B1
        self._of = of
        if not any(starts):
            self._index, self._seen = None, longest
            return positions_BT if of is None else steps_T[None], None
        self._seen = max(start + new for start, new in zip(starts, n_new, strict=True))
        row_N, step_N = (steps_T < new_B1).nonzero(as_tuple=True)
        self._index = (row_N, step_N, positions_BT[row_N, step_N])
        return positions_BT, self._mask(positions_BT)

    def update(self, layer: int, keys_BKTE: Tensor, values_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Append to one layer; returns all its keys and values up to the longest row, (B, K, S, E) each."""
        n_new = keys_BKTE.shape[2]
        stored = []
        for new_BKTE, which in ((keys_BKTE, 2 * layer), (values_BKTE, 2 * layer + 1)):
            rows = self._lanes[which][self._rows]
            index = self._index
            if index is None:
                rows[:, :, :n_new] = new_BKTE if self._of is None else new_BKTE[self._of]
            elif isinstance(index, int):
                rows[:, :, index : index + 1] = new_BKTE
            elif isinstance(index, Tensor):
                vectors = self._stored[which].view(-1, self._d_head)
                vectors.index_copy_(0, index, new_BKTE.reshape(-1, self._d_head))
            else:
                row_N, step_N, position_N = index
                rows[row_N, :, position_N] = new_BKTE[row_N, :, step_N]
            stored.append(rows[:, :, : self._seen])
        return (keys_BKTE, values_BKTE) if self._index is None else (stored[0], stored[1])

    def carry(self, name: str, values: Tensor, n: int) -> Tensor:
        """The n entries before `values` (B, T, ...); keeps each row's last n. What a new row finds there is the
        model's to ignore: it knows where a sequence starts."""
        if name not in self._carried:
            self._carried[name] = values.new_zeros(self.max_rows, n, *values.shape[2:])
        kept = self._carried[name][self._rows]
        joined = torch.cat([kept, values], dim=1)
        before = joined[:, :n]
        if values.shape[1] == 1:
            kept.copy_(joined[:, 1:])
        else:
            last_Bn = self._last_B1 + torch.arange(n, device=values.device)
            kept.copy_(joined[torch.arange(len(joined), device=values.device)[:, None], last_Bn])
        return before

    def _mask(self, positions_BT: Tensor) -> Tensor:
        """0 where a query at its position may see a key, -inf where not: (B, 1, T, S)."""
        hidden = torch.arange(self._seen, device=self._device) > positions_BT[..., None]
        return torch.zeros(hidden.shape, dtype=self._dtype, device=self._device).masked_fill_(hidden, -torch.inf)[
            :, None
        ]
