"""The memory that a model runs over, and one step for a plan: logits for every row that is to get a token.

Legend: B rows, T prompt positions, D width, V vocabulary.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from talaria.infer.decode_graphs import DecodeGraphs
from talaria.infer.drafts import ROWS
from talaria.infer.kv_cache import KVCache
from talaria.infer.lanes import Lanes
from talaria.infer.memory import CACHE_SHARE
from talaria.infer.pages import Pages
from talaria.infer.prefix_store import PrefixStore, n_blocks_for
from talaria.infer.scheduler import Memory, Plan, Request
from talaria.model.compiled import PAGE, CompiledTransformer, PagedReader, Piece, Scores
from talaria.model.transformer import Transformer


def default_cache_bytes(device: torch.device) -> int:
    """Memory of keys and values where nobody says how much."""
    if device.type != "cuda":
        return 1 << 30
    torch.cuda.empty_cache()  # else what torch keeps of freed tensors counts as used
    return max(1 << 30, torch.cuda.mem_get_info(device)[0] // 4)


def memory_for(
    model: Transformer | CompiledTransformer, cache_bytes: int, max_batch_size: int, prefix_cache: bool
) -> Memory:
    """Keys and values of at most `cache_bytes`, and no more than full rows and as much kept need; a compiled model has
    a block of padding besides."""
    shape, rows = model.shape, CACHE_SHARE * max_batch_size
    if isinstance(model, CompiledTransformer):
        n_blocks = min(cache_bytes // shape.kv_cache_bytes(1, PAGE), rows * n_blocks_for(shape.context, PAGE))
        return Pages(model.reader(n_blocks), n_blocks, prefix_cache)
    dtype = next(model.parameters()).dtype
    n_blocks = min(cache_bytes // KVCache.bytes_per_block(shape, dtype), rows * n_blocks_for(shape.context))
    # What a token shift or an n-gram table looks back at is not in the blocks.
    looks_back = shape.token_shift or shape.ngram_embeddings > 0
    is_recorded = model.device.type == "cuda" and not looks_back
    cache = KVCache(shape, n_blocks, max_batch_size, dtype, model.device, spare=is_recorded)
    graphs = DecodeGraphs(model, cache) if is_recorded else None
    return Lanes(cache, PrefixStore(n_blocks) if prefix_cache and not looks_back else None, graphs)


@torch.inference_mode()
def run(
    model: Transformer | CompiledTransformer, memory: Memory, plan: Plan
) -> tuple[list[Request], Tensor, Scores | None]:
    """Read what the plan says; returns the requests whose next token can be chosen, their logits_BV, and what a
    compiled model knows of these besides. A request stands there once more for each of its `guessed` tokens, with the
    logits behind it.

    Rows that answer and rows that are read go through the model apart: the first are bound by reading the weights,
    the others by arithmetic, so there is little to win by joining them.
    """
    if isinstance(model, CompiledTransformer):
        assert isinstance(memory, Pages)
        return _run_compiled(model, memory.reader, plan)
    assert isinstance(memory, Lanes)
    cache = memory.cache
    requests, logits = list(plan.decode), []
    if plan.decode:
        logits.append(_decode(model, memory, plan.decode))
    if plan.prefill:
        last_BD = _prefill(model, cache, plan)
        done = [i for i, request in enumerate(plan.prefill) if request.is_read]
        if done:
            logits.append(model.head(last_BD[done]))
            requests += [plan.prefill[i] for i in done]
    if not logits:
        return [], torch.empty(0, model.shape.vocab_size), None
    return requests, logits[0] if len(logits) == 1 else torch.cat(logits), None


def _run_compiled(
    model: CompiledTransformer, reader: PagedReader, plan: Plan
) -> tuple[list[Request], Tensor, Scores | None]:
    # A prompt of one token goes with the single tokens of the answers: see `PagedReader.read`.
    reading = list(zip(plan.prefill, plan.chunks, strict=True))
    single = [(request, 1) for request in plan.decode] + [pair for pair in reading if pair[1] == 1]
    several = [pair for pair in reading if pair[1] > 1]
    _guess(plan, len(single))
    requests: list[Request] = []
    hidden: list[Tensor] = []
    for group in (single, several):
        batch = _Batch()
        for request, chunk in group:
            batch.add(request, chunk)
        if batch.pieces:
            hidden.append(reader.read(batch.pieces, batch.wanted))
        if batch.copies:
            reader.copy(*map(chain.from_iterable, zip(*batch.copies, strict=True)))
        requests += batch.requests
    if not requests:
        return [], torch.empty(0, model.shape.vocab_size), None
    scores = model.scores(hidden[0] if len(hidden) == 1 else torch.cat(hidden))
    return requests, scores.logits, scores


class _Batch:
    """What the reader gets at once: `pieces`, which of their tokens are `wanted`, counted over all, and for which of
    the `requests`; then `copies` of blocks to others' blocks. Where several requests read the same behind the same
    blocks, as for several answers to a prompt, one reads it and the others copy."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.requests: list[Request] = []
        self.wanted: list[int] = []
        self.copies: list[tuple[list[int], list[int]]] = []
        self._n_tokens = 0
        self._first: dict[tuple[tuple[int, ...], ...], tuple[Request, int]] = {}

    def add(self, request: Request, chunk: int) -> None:
        """The next `chunk` tokens of a request and, if its text is read with them, what it guesses to follow."""
        end = request.length + chunk
        last = self._read(request, end)
        request.length = end
        if end == len(request.ids):
            request.is_read = True
            self._want(request, last)
        for place, token in enumerate(request.guessed, start=end):
            self._want(request, self._piece([token], place, request))

    def _read(self, request: Request, end: int) -> int:
        """Take in the request's tokens up to `end`, or what another reads of them; returns the place of the last."""
        ids = request.ids[request.length : end]
        if len(ids) == 1 or request.length % PAGE > 0:
            return self._piece(ids, request.length, request)
        n_shared = request.length // PAGE
        text = tuple(request.blocks[:n_shared]), tuple(ids)
        if text not in self._first:
            self._first[text] = request, self._piece(ids, request.length, request)
            return self._first[text][1]
        first, last = self._first[text]
        own = slice(n_shared, n_blocks_for(end, PAGE))
        self.copies.append((first.blocks[own], request.blocks[own]))
        return last

    def _piece(self, ids: list[int], start: int, request: Request) -> int:
        self.pieces.append(Piece(ids, start, request.blocks))
        self._n_tokens += len(ids)
        return self._n_tokens - 1

    def _want(self, request: Request, place: int) -> None:
        self.requests.append(request)
        self.wanted.append(place)


def _guess(plan: Plan, n_single: int) -> None:
    """Give the answers under way what may follow in them, as far as their blocks reach and a step has rows."""
    most = ROWS // max(1, n_single) - 1
    for request in plan.decode:
        room = min(len(request.blocks) * PAGE - len(request.ids), request.max_tokens - request.n_generated - 1, most)
        request.guessed = request.drafts.guess(request.ids, room) if request.drafts is not None and room > 0 else []


def _decode(model: Transformer, memory: Lanes, requests: list[Request]) -> Tensor:
    """Read the newest token of each row."""
    tokens, lengths = [request.ids[-1] for request in requests], [request.length for request in requests]
    for request in requests:
        request.length += 1
    logits_BV = None if memory.graphs is None else memory.graphs.logits(tokens, lengths)
    if logits_BV is None:
        positions_B1, mask = memory.cache.begin_decode(lengths)
        tokens_B1 = torch.tensor(tokens, device=positions_B1.device)[:, None]
        logits_BV = model.head(model.hidden(tokens_B1, positions_B1, mask, memory.cache)[:, 0])
    return logits_BV


def _prefill(model: Transformer, cache: KVCache, plan: Plan) -> Tensor:
    """Read the next chunk of each prompt, padded on the right; returns the state behind each. Prompts that are the
    same, as for several answers to each, are read once where all are read from their beginning."""
    longest = max(plan.chunks)
    pieces = [
        tuple(request.ids[request.length : request.length + chunk])
        for request, chunk in zip(plan.prefill, plan.chunks, strict=True)
    ]
    starts = [request.length for request in plan.prefill]
    looks_back = model.shape.token_shift or model.shape.ngram_embeddings > 0
    of = None
    if not any(starts) and not looks_back and len(set(pieces)) < len(pieces):
        place = {piece: row for row, piece in enumerate(dict.fromkeys(pieces))}
        of = torch.tensor([place[piece] for piece in pieces], device=model.device)
        pieces = list(place)
    positions_BT, mask = cache.begin_prefill(len(plan.decode), starts, plan.chunks, of)
    tokens_BT = torch.tensor([[*piece, *[0] * (longest - len(piece))] for piece in pieces], device=model.device)
    hidden_BTD = model.hidden(tokens_BT, positions_BT, mask, cache)
    rows_B = torch.arange(len(pieces), device=model.device) if of is None else of
    last_BD = hidden_BTD[rows_B, [chunk - 1 for chunk in plan.chunks]]
    for request, chunk in zip(plan.prefill, plan.chunks, strict=True):
        request.length += chunk
        request.is_read = request.length == len(request.ids)
    return last_BD
