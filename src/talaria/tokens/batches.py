"""Token windows and conversations in, batches out: deterministic, resumable to the very next batch, split over ranks.

    batches = PackedBatches(Shards(folder, "train"), context=256, batch_size=16, seed=0)
    batch = next(batches)  # batch.inputs_BT, .targets_BT, .document_ids_BT, .loss_mask_BT
    saved = batches.state()

B batch, T positions, R rows.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from talaria.errors import UserError
from talaria.tokens.chat import ChatTokens
from talaria.tokens.shards import Shards

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Batch(NamedTuple):
    """int64 B,T tensors, but loss_mask_BT is bool.

    A document is a stretch of equal `document_ids_BT` within a row; attention should not cross it. Padding has document
    id -1 and no loss.
    """

    inputs_BT: torch.Tensor
    targets_BT: torch.Tensor
    document_ids_BT: torch.Tensor
    loss_mask_BT: torch.Tensor


class PackedBatches:
    """Batches of windows over a token stream, endless or for `epochs` passes.

    Window i has inputs [i*context, (i+1)*context) and the targets one place later, so every token but the stream's
    first is a target exactly once an epoch. A separator opens its document: as a target it closes the one before, as
    an input it belongs to the one after. Windows are shuffled anew each epoch; batches run on across epochs. Rank r of
    `world_size` gets rows [r*batch_size, (r+1)*batch_size) of a global batch of world_size*batch_size rows, so two
    ranks of 8 see what one of 16 sees. The stream's last window is padded, and so is the last batch of the last epoch.
    With a `data_share` below 1 only that share of the windows exists, the same ones for every seed.
    """

    def __init__(
        self,
        shards: Shards,
        context: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        epochs: int | None = None,
        data_share: float = 1.0,
    ) -> None:
        if shards.n_tokens < 2:
            raise UserError(
                f"the {shards.split} split has {shards.n_tokens} tokens, too few to use; add text to the corpus"
            )
        self._shards, self._context = shards, context
        n_windows = -(-(shards.n_tokens - 1) // context)
        self.n_windows = max(1, round(data_share * n_windows))
        # Drawn from all of the stream, whose documents may stand in the order of their sources.
        self._kept = (
            None if self.n_windows == n_windows else np.random.default_rng(0).permutation(n_windows)[: self.n_windows]
        )
        self._order = _Order(self.n_windows, batch_size, seed, rank, world_size, shuffle, epochs)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = self._order.next_rows()
        context = self._context
        windows = np.full((len(rows), context + 1), -1, dtype=np.int64)
        for window, row in zip(windows, rows, strict=True):
            if row >= 0:
                row = row if self._kept is None else int(self._kept[row])
                tokens = self._shards.tokens(row * context, (row + 1) * context + 1)
                window[: len(tokens)] = tokens
        inputs, targets = windows[:, :-1], windows[:, 1:]
        loss_mask = targets >= 0
        documents = np.cumsum(inputs == self._shards.separator_id, axis=1)  # all 0 where there is no separator
        documents[~loss_mask] = -1
        return _tensors(np.maximum(inputs, 0), np.maximum(targets, 0), documents, loss_mask)

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on with the very next batch; JSON-able."""
        return self._order.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self._order.load_state(state)


@dataclass(frozen=True)
class PackedConversations:
    """Rows of whole conversations; int64 and bool arrays R,T. `n_truncated`, `n_dropped` count conversations."""

    inputs_RT: Ints
    targets_RT: Ints
    document_ids_RT: Ints
    loss_mask_RT: Bools
    n_truncated: int
    n_dropped: int


def pack_conversations(conversations: Sequence[ChatTokens], context: int) -> PackedConversations:
    """Pack conversations into rows of `context` positions, each conversation whole in one row.

    Longest first, each into the fullest row that still has room (best-fit decreasing). A conversation of n tokens takes
    n - 1 positions: its targets are its tokens from the second on, and the mask is that of the targets. One that is
    longer than a row loses its end; if no token with a loss is left, or none was there, it is dropped and counted.
    """
    kept: list[ChatTokens] = []
    n_truncated = n_dropped = 0
    for chat in conversations:
        if not any(chat.loss_mask[1 : context + 1]):
            n_dropped += 1
            continue
        n_truncated += len(chat.ids) > context + 1
        kept.append(ChatTokens(chat.ids[: context + 1], chat.loss_mask[: context + 1]))
    kept.sort(key=lambda chat: -len(chat.ids))
    rows: list[list[ChatTokens]] = []
    room: list[tuple[int, int]] = []  # (free positions, row), sorted
    for chat in kept:
        need = len(chat.ids) - 1
        place = bisect.bisect_left(room, (need, 0))
        if place < len(room):
            free, row = room.pop(place)
        else:
            free, row = context, len(rows)
            rows.append([])
        rows[row].append(chat)
        bisect.insort(room, (free - need, row))
    inputs, targets = np.zeros((2, len(rows), context), dtype=np.int64)
    documents = np.full((len(rows), context), -1, dtype=np.int64)
    loss_mask = np.zeros((len(rows), context), dtype=np.bool_)
    for row, chats in enumerate(rows):
        start = 0
        for document, chat in enumerate(chats):
            stop = start + len(chat.ids) - 1
            inputs[row, start:stop] = chat.ids[:-1]
            targets[row, start:stop] = chat.ids[1:]
            documents[row, start:stop] = document
            loss_mask[row, start:stop] = chat.loss_mask[1:]
            start = stop
    return PackedConversations(inputs, targets, documents, loss_mask, n_truncated, n_dropped)


class ConversationBatches:
    """Batches of packed conversations, shuffled, resumed and split over ranks as `PackedBatches` are."""

    def __init__(
        self,
        packed: PackedConversations,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        epochs: int | None = None,
    ) -> None:
        if len(packed.inputs_RT) == 0:
            raise UserError(
                f"no conversation fits the context ({packed.n_dropped} left out); use a longer context or other data"
            )
        self._packed = packed
        self.n_rows = len(packed.inputs_RT)
        self._order = _Order(self.n_rows, batch_size, seed, rank, world_size, shuffle, epochs)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = self._order.next_rows()
        packed, absent = self._packed, rows < 0
        documents, loss_mask = packed.document_ids_RT[rows], packed.loss_mask_RT[rows]
        documents[absent], loss_mask[absent] = -1, False
        return _tensors(packed.inputs_RT[rows], packed.targets_RT[rows], documents, loss_mask)

    def state(self) -> dict[str, Any]:
        return self._order.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self._order.load_state(state)


class _Order:
    """The order of rows: one permutation an epoch, read in global batches; the position is all its state."""

    def __init__(
        self, n_rows: int, batch_size: int, seed: int, rank: int, world_size: int, shuffle: bool, epochs: int | None
    ) -> None:
        assert n_rows > 0 and batch_size > 0 and 0 <= rank < world_size
        self._n_rows, self._batch_size, self._seed = n_rows, batch_size, seed
        self._rank, self._world_size, self._shuffle, self._epochs = rank, world_size, shuffle, epochs
        self._position = 0  # rows handed out to all ranks together
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def next_rows(self) -> Ints:
        """Rows of this rank in the next batch; -1 where the last epoch has no more."""
        start = self._position
        if self._epochs is not None and start >= self._epochs * self._n_rows:
            raise StopIteration
        self._position += self._batch_size * self._world_size
        start += self._rank * self._batch_size
        return np.array([self._row(place) for place in range(start, start + self._batch_size)], dtype=np.int64)

    def _row(self, place: int) -> int:
        epoch, within = divmod(place, self._n_rows)
        if self._epochs is not None and epoch >= self._epochs:
            return -1
        if not self._shuffle:
            return within
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng((self._seed, epoch)).permutation(self._n_rows)
        return int(self._permutation[within])

    def state(self) -> dict[str, Any]:
        return {"position": self._position, "n_rows": self._n_rows, "seed": self._seed, "shuffle": self._shuffle}

    def load_state(self, state: dict[str, Any]) -> None:
        mine = self.state()
        changed = [key for key in ("n_rows", "seed", "shuffle") if state[key] != mine[key]]
        if changed:
            raise UserError(
                f"the checkpoint's data order differs in {', '.join(changed)}; resume with the settings and data that "
                "it was written with, or start anew"
            )
        self._position = state["position"]


def _tensors(inputs: Ints, targets: Ints, documents: Ints, loss_mask: Bools) -> Batch:
    arrays = (inputs, targets, documents, loss_mask)
    return Batch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
