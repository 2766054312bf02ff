"""One token for each row on a GPU, its hundreds of kernels recorded once and launched together.

A small model's step takes longer to launch, kernel by kernel, than to compute. A CUDA graph launches all of it at once,
over memory that never moves: so a step is recorded for a few numbers of rows, widths of lanes and positions, and rows
that nobody asked for fill it up. It reads the weights where they lay when it was recorded: see `follow_weights`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from talaria.infer.kv_cache import KVCache
from talaria.infer.prefix_store import BLOCK
from talaria.model.lora import LoraLinear
from talaria.model.transformer import Transformer

_FEWEST_POSITIONS = 256
_MEETINGS = 4
"""A step of new sizes is recorded when it is met for the fourth time: what runs down goes through many sizes once."""
_MOST = 64
"""Recorded steps; with more, as where memory is short and lanes take ever new widths, all are let go."""
_one_at_a_time = threading.Lock()
"""torch records one graph in a process at a time, and servers of several models have a thread for each."""


class DecodeGraphs:
    """The decode steps of one model over one cache."""

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        most = _filled_up(cache.max_rows)
        self._inputs = torch.zeros((2 + model.shape.n_kv_heads) * most, dtype=torch.int64, device=model.device)
        dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        self._logits = torch.empty(most, model.shape.vocab_size, dtype=dtype, device=model.device)
        self._replays: dict[tuple[int, int, int], Callable[[], None]] = {}
        self._met: Counter[tuple[int, int, int]] = Counter()
        # One for all recordings: what a graph leaves free in their pool only the same stream may use again.
        self._stream: Any = None
        self._clear()

    def follow_weights(self) -> None:
        """Record anew what comes if weights lie elsewhere by now, or are others; trained in place, they are read."""
        if self._weights != _places_of(self._model):
            self._clear()

    def _clear(self) -> None:
        self._weights = _places_of(self._model)
        self._replays.clear()
        self._met.clear()
        self._pool: Any = None  # one for all graphs
        self._has_memory = True
        self._loras = [module for module in self._model.modules() if isinstance(module, LoraLinear)]

    def logits(self, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor | None:
        """Logits (rows, V) behind one more token of each of the first rows, which hold `lengths` positions; the next
        call overwrites them. None where this step is not recorded: until its sizes were met a few times, and where
        memory was too short for it."""
        # Autocast keeps copies of weights, which a recorded step would go on reading.
        if torch.is_autocast_enabled("cuda") or not all(lora.enabled for lora in self._loras):
            return None
        n_rows, width = len(tokens), self._cache.width
        rows = _filled_up(n_rows) if _filled_up(n_rows) * width <= self._cache.n_blocks else n_rows
        seen = min(width * BLOCK, max(_FEWEST_POSITIONS, 1 << max(lengths).bit_length()))
        key = rows, width, seen
        self._met[key] += 1
        if key not in self._replays and (self._met[key] < _MEETINGS or not self._has_memory):
            return None
        filled = np.zeros((2, rows), dtype=np.int64)
        filled[:, :n_rows] = tokens, lengths
        values = np.concatenate([filled.reshape(-1), self._cache.places(lengths, rows)])
        inputs = self._inputs[: len(values)]
        inputs.copy_(torch.from_numpy(values))
        if key not in self._replays:
            if len(self._replays) == _MOST:
                self._clear()
            try:
                self._replays[key] = self._recorded(lambda: self._step(inputs, rows, seen))
            except torch.OutOfMemoryError:
                self._has_memory = False  # for another step, until all are recorded anew
                return None
        self._replays[key]()
        return self._logits[:n_rows]

    def _step(self, inputs: Tensor, rows: int, seen: int) -> None:
        tokens_B1, positions_B1 = inputs[:rows, None], inputs[rows : 2 * rows, None]
        mask = self._cache.begin_decode_at(positions_B1, inputs[2 * rows :], seen)
        hidden_B1D = self._model.hidden(tokens_B1, positions_B1, mask, self._cache)
        self._logits[:rows].copy_(self._model.head(hidden_B1D[:, 0]))

    def _recorded(self, step: Callable[[], None]) -> Callable[[], None]:
        device = self._model.device
        with torch.cuda.device(device), _one_at_a_time:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            if self._stream is None:  # torch's own is of whichever device came first
                self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            step()  # what loads or allocates at its first call must not be recorded
            graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
            try:
                with torch.cuda.graph(graph, self._pool, self._stream, "thread_local"):
                    step()
            finally:
                torch.cuda.set_stream(before)  # which torch leaves as it is where recording fails

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return replay


def _places_of(model: Transformer) -> list[int]:
    return [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]


def _filled_up(n_rows: int) -> int:
    return 1 << (n_rows - 1).bit_length() if n_rows <= 8 else -(-n_rows // 8) * 8
