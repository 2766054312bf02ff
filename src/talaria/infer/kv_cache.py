"""Keys and values of every earlier position, so that each new token costs one position of work.

Legend: B rows, K key-value heads, T new positions, S cached positions, E head width. Each row has its own length: row b
holds positions 0..lengths[b]-1, and what lies behind them is leftover that `mask` hides.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Preallocated cache of `n_rows` rows of at most `capacity` positions.

    Around each run of the model: `begin` says how many new positions every row brings, the model calls `update` (and
    `carry`) in each layer, `advance` moves the lengths.
    """

    def __init__(
        self,
        n_layers: int,
        n_rows: int,
        n_kv_heads: int,
        capacity: int,
        d_head: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (n_rows, n_kv_heads, capacity, d_head)
        # Zeros, not empty: a masked position has weight 0, and 0 times a leftover NaN would be NaN.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(n_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(n_layers)]
        self.lengths_B = torch.zeros(n_rows, dtype=torch.int64, device=device)
        self.longest = 0
        self._new_B = self.lengths_B
        self._longest_after = 0
        self._carried: dict[str, Tensor] = {}
        self._rows = torch.arange(n_rows, device=device)

    @staticmethod
    def bytes_per_position(n_layers: int, n_kv_heads: int, d_head: int, dtype: torch.dtype) -> int:
        """Memory of one position of one row."""
        return 2 * n_layers * n_kv_heads * d_head * dtype.itemsize

    @property
    def n_rows(self) -> int:
        """Rows in use."""
        return len(self.lengths_B)

    def begin(self, n_new_B: Tensor, longest_after: int) -> None:
        """Announce the new positions of each row (int64, B) and the longest row once they are in."""
        self._new_B = n_new_B
        self._longest_after = longest_after

    def advance(self) -> None:
        """Count the new positions, after the model has run."""
        self.lengths_B = self.lengths_B + self._new_B
        self.longest = self._longest_after

    def update(self, layer: int, keys_BKTE: Tensor, values_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values behind each row's length; returns that layer's, old and new, (B, K, S, E) each.

        Either the rows are all empty (prompts, padded on the right) or T is 1 (one more token a row).
        """
        n_rows, n_new = self.n_rows, keys_BKTE.shape[2]
        keys, values = self.keys[layer], self.values[layer]
        if self.longest == 0:
            keys[:n_rows, :, :n_new] = keys_BKTE
            values[:n_rows, :, :n_new] = values_BKTE
            return keys_BKTE, values_BKTE
        assert n_new == 1, "a filled cache grows by one position at a time"
        rows_B = self._rows[:n_rows]
        keys[rows_B, :, self.lengths_B] = keys_BKTE[:, :, 0]
        values[rows_B, :, self.lengths_B] = values_BKTE[:, :, 0]
        return keys[:n_rows, :, : self._longest_after], values[:n_rows, :, : self._longest_after]

    def carry(self, name: str, values: Tensor, n: int) -> Tensor:
        """The n entries before `values` (B, T, ...), zeros at a row's start; keeps each row's last n."""
        before = self._carried.get(name)
        if before is None:
            before = values.new_zeros(values.shape[0], n, *values.shape[2:])
        joined = torch.cat([before, values], dim=1)
        last_Bn = self._new_B[:, None] + torch.arange(n, device=values.device)
        self._carried[name] = joined[self._rows[: self.n_rows, None], last_Bn]
        return before

    def mask(self) -> Tensor:
        """What one new token a row may see, itself included: bool (B, 1, 1, longest + 1)."""
        positions_S = torch.arange(self.longest + 1, device=self.lengths_B.device)
        return (positions_S <= self.lengths_B[:, None])[:, None, None, :]

    def keep(self, alive_B: Tensor) -> Tensor:
        """Drop the rows that are not alive; returns for each row that stays the index it had.

        Only rows behind the new end move, each into a hole: the copying is at most one row for each that left.
        """
        order = self._rows[: self.n_rows].clone()
        n_alive = int(alive_B.sum())
        holes = order[:n_alive][~alive_B[:n_alive]]
        movers = order[n_alive:][alive_B[n_alive:]]
        if len(holes):
            for stored in (*self.keys, *self.values):
                stored[holes, :, : self.longest] = stored[movers, :, : self.longest]
            order[holes] = movers
        order = order[:n_alive]
        self._carried = {name: values[order] for name, values in self._carried.items()}
        self.lengths_B = self.lengths_B[order]
        self.longest = int(self.lengths_B.max()) if n_alive else 0
        return order
