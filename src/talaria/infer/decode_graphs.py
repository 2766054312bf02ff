"""One token for each row on a GPU, its hundreds of kernels recorded once and launched together.

A small model's step takes longer to launch, kernel by kernel, than to compute. A CUDA graph launches all of it at once,
over memory that never moves: so a step is recorded for a few numbers of rows and of positions, and rows that nobody
asked for fill it up. It reads the weights where they lay when it was recorded: `clear` when they move.

Legend: B rows, filled up; K key-value heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from talaria.infer.kv_cache import KVCache
from talaria.model.lora import LoraLinear
from talaria.model.transformer import Transformer

_FEWEST_POSITIONS = 256
_MOST = 64
"""Recorded steps; with more, as where lanes take ever new widths, all are let go. One takes some MiB."""


class DecodeGraphs:
    """The decode steps of one model over one cache."""

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        self._inputs: Tensor | None = None
        self.clear()

    def clear(self) -> None:
        """Record anew what comes: weights have moved, or a module is another."""
        self._replays: dict[tuple[int, int, int], Callable[[], Tensor]] = {}
        self._met: set[tuple[int, int, int]] = set()
        self._pool: Any = None  # one for all graphs; it ends with the last of them
        self._loras = [module for module in self._model.modules() if isinstance(module, LoraLinear)]

    def logits(self, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor | None:
        """Logits (rows, V) behind one more token of each of the first rows, which hold `lengths` positions; the next
        call overwrites them. None where this step is not recorded, as a size that is met for the first time is not."""
        n_rows, width = len(tokens), self._cache.width
        rows = _few(n_rows)
        if rows * width > self._cache.n_blocks or not all(lora.enabled for lora in self._loras):
            return None
        if torch.is_autocast_enabled("cuda"):
            return None  # it keeps copies of weights, which a recorded step would go on reading
        seen = self._cache.seen_up_to(max(_FEWEST_POSITIONS, 1 << max(lengths).bit_length()))
        key = rows, width, seen
        if key not in self._replays and key not in self._met:
            self._met.add(key)
            return None
        inputs = np.zeros((2, rows), dtype=np.int64)
        inputs[:, :n_rows] = tokens, lengths
        places = self._cache.places(lengths, rows)
        whole = torch.from_numpy(np.concatenate([inputs.reshape(-1), places]))
        if key not in self._replays and len(self._replays) == _MOST:
            self.clear()
        if self._inputs is None or len(self._inputs) < len(whole):
            self.clear()
            self._inputs = torch.zeros(2 * len(whole), dtype=torch.int64, device=self._model.device)
        self._inputs[: len(whole)].copy_(whole)
        if key not in self._replays:
            own = self._inputs[: len(whole)]
            self._replays[key] = self._recorded(lambda: self._step(own, rows, seen))
        return self._replays[key]()[:n_rows]

    def _step(self, inputs: Tensor, rows: int, seen: int) -> Tensor:
        tokens_B1, positions_B1 = inputs[:rows, None], inputs[rows : 2 * rows, None]
        mask = self._cache.begin_decode_at(positions_B1, inputs[2 * rows :], seen)
        return self._model.head(self._model.hidden(tokens_B1, positions_B1, mask, self._cache)[:, 0])

    def _recorded(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        step()  # what loads or allocates at its first call must not be recorded
        graph = torch.cuda.CUDAGraph()
        # A server's other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = step()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


def _few(n_rows: int) -> int:
    return 1 << (n_rows - 1).bit_length() if n_rows <= 8 else -(-n_rows // 8) * 8
