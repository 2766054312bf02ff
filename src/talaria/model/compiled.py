"""A trunk compiled for this CPU: several sequences of ids with their blocks of memory in, hidden states and logits out.

    model = compile_transformer(transformer)        # fp32, 8- or 4-bit weights; needs openvino, see `can_compile`
    model = compile_transformer(policy, live=True)  # reads the policy's own weights, as training leaves them
    reader = model.reader(n_blocks)
    hidden_MD = reader.read([Piece(ids, start, blocks)], wanted=[len(ids) - 1])
    logits_MV = model.head(hidden_MD)

Keys and values lie in blocks of `PAGE` positions, anywhere in the memory; a sequence names its blocks in order, and two
sequences may name the same one. Weights that are not live are fixed: compile again after training. INT8 and INT4
weights multiply int8 activations, some columns of a row scaled by themselves, so that an answer does not depend on what
runs beside it; on processors that cannot, see `has_int8_products`.

Legend: B rows, T positions, N tokens of all sequences, M wanted ones, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from talaria.model.lora import lora_is_on
from talaria.model.quantized import QuantizedTransformer, step_bytes, weight_bytes
from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer

if TYPE_CHECKING:
    from openvino import CompiledModel

PAGE = 32
"""Positions in a block of keys and values: what OpenVINO's attention on a CPU takes."""
SMALL = 1 << 28
"""Weights of up to this many bytes, 256 MiB, are kept a second time for single tokens alone: a graph that knows its
sizes spends a millisecond less a token on deciding what to do. Larger weights hide that."""
MANY = 64
"""Rows of a head up to which each number of them is a size of its own: those are the answers that run side by side."""
_ACTIVATION_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
# Columns of a row of activations that share a scale: those of a weight's group in INT4; INT8 has a scale a row. With
# groups of 192 sixteen rows are a twentieth faster, and the loss is twice as far off.

_INT4_GROUP, _INT8_GROUP = 32, 64


class Piece(NamedTuple):
    """The next tokens of one sequence: `ids` stand from the position `start` on, `blocks` hold them and all before."""

    ids: Sequence[int]
    start: int
    blocks: Sequence[int]


@dataclass(frozen=True)
class Trunks:
    """The trunk compiled: for whatever comes, and, of a small model, for one token alone."""

    any: CompiledModel
    single: CompiledModel | None = None
    weights: Mapping[str, Any] = field(default_factory=dict)
    """Of live ones: what each call is given besides."""


class PagedReader:
    """The compiled trunk over a memory of its own, `n_blocks` blocks of `PAGE` positions, taken as they are written,
    and one for padding.

    Fewer single tokens than threads get sequences without a token beside them: for them OpenVINO would share one
    sequence's positions among the threads, and round their sums otherwise than where a token has company.
    """

    def __init__(self, trunks: Trunks, shape: ModelShape, n_blocks: int, n_threads: int) -> None:
        self._n_threads, self._padding_block = n_threads, n_blocks
        self._request = trunks.any.create_infer_request()
        self._given: dict[str, Any] = {}
        self._single = None if trunks.single is None else trunks.single.create_infer_request()
        size = (n_blocks + 1, shape.n_kv_heads, PAGE, shape.d_head)
        self._memory = {
            f"{name}.{layer}": np.empty(size, dtype=np.float32)
            for layer in range(shape.n_layers)
            for name in ("key_cache", "value_cache")
        }
        given = {**self._memory, **trunks.weights}
        for request in (self._request, self._single):
            if request is not None:
                for name, array in given.items():
                    _give(request, name, array)
        if self._single is not None:
            # Written in place: handing an array over takes longer than filling it.
            self._token, self._position = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
            self._past, self._longest = np.zeros(n_threads, dtype=np.int32), np.zeros((), dtype=np.int32)
            self._block_ends = np.zeros(n_threads + 1, dtype=np.int32)
            self._fixed = _begins([1] + [0] * (n_threads - 1)), np.zeros(1, dtype=np.int64)
            for name, values in (
                ("tokens", self._token),
                ("positions", self._position),
                ("past_lens", self._past),
                ("max_context_len", self._longest),
                ("block_indices_begins", self._block_ends),
                ("subsequence_begins", self._fixed[0]),
                ("wanted", self._fixed[1]),
            ):
                _give(self._single, name, values)

    def read(self, pieces: Sequence[Piece], wanted: Sequence[int]) -> Tensor:
        """Final hidden states (M, D) of the wanted tokens, counted over all pieces, one behind the other.

        Either all pieces are of one token or none is: the two go through different kernels, which round differently.
        """
        if self._single is not None and len(pieces) == len(pieces[0].ids) == len(wanted) == 1:
            return self._read_one(pieces[0])
        is_single = all(len(piece.ids) == 1 for piece in pieces)
        empty = max(0, self._n_threads - len(pieces)) if is_single else 0
        if not is_single:
            pieces = self._padded(pieces)
        for name, values in _inputs(pieces, wanted, empty).items():
            _put(self._request, self._given, name, values)
        return _results(self._request)[0]

    def copy(self, blocks: Iterable[int], to: Iterable[int]) -> None:
        """Keys and values of some blocks into others."""
        source, target = list(blocks), list(to)
        for array in self._memory.values():
            array[target] = array[source]

    def _padded(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """Sequences that nobody asked for behind the others, up to one of a few sizes; none is longer than a block."""
        n_tokens = sum(len(piece.ids) for piece in pieces)
        n_missing = _few_sizes(n_tokens) - n_tokens
        lengths = [min(PAGE, n_missing - start) for start in range(0, n_missing, PAGE)]
        return [*pieces, *(Piece([0] * length, 0, [self._padding_block]) for length in lengths)]

    def _read_one(self, piece: Piece) -> Tensor:
        n_blocks = -(-(piece.start + 1) // PAGE)
        self._token[0], self._position[0], self._past[0] = piece.ids[0], piece.start, piece.start
        self._longest[()] = piece.start + 1
        empty = self._n_threads - 1
        self._block_ends[1:] = np.arange(n_blocks, n_blocks + empty + 1)
        blocks = np.array([*piece.blocks[:n_blocks], *[piece.blocks[0]] * empty], dtype=np.int32)
        _give(self._single, "block_indices", blocks)
        return _results(self._single)[0]


@dataclass(frozen=True)
class Scores:
    """Logits (M, V), and the logarithm of the sum of each row's exponentials (M); the next `scores` overwrites them."""

    logits: Tensor
    log_totals: Tensor

    def best(self) -> Tensor:
        """The id of each row's largest logit (M), int64."""
        # torch's takes ten times as long.
        return torch.from_numpy(self.logits.numpy().argmax(axis=-1))


class CompiledTransformer:
    """Reads sequences as `Transformer` does, to within the rounding of its weights' kernels.

    Built by `compile_transformer`. `weight_bytes` are those of the model it was made from, `step_bytes` those that
    each step reads. `few_are_as_one`: a few tokens at once take little longer than one, and are rounded alike.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        model: Transformer,
        trunks: Trunks,
        head: CompiledModel,
        n_threads: int,
        head_weights: Mapping[str, Any] | None = None,
    ) -> None:
        self._n_threads = n_threads
        self.shape = model.shape
        self.weight_bytes, self.step_bytes = weight_bytes(model), step_bytes(model)
        self.few_are_as_one = has_int8_products() or not isinstance(model, QuantizedTransformer)
        self._trunks, self._head = trunks, head.create_infer_request()
        self._given: dict[str, Any] = {}
        for name, array in (head_weights or {}).items():
            _give(self._head, name, array)
        self._live = model if trunks.weights else None
        self._places = [tensor.data_ptr() for tensor in self.live_weights]

    @property
    def live_weights(self) -> tuple[Tensor, ...]:
        """What is read where it lies; nothing of fixed weights."""
        return () if self._live is None else tuple(self._live.parameters())

    def reader(self, n_blocks: int) -> PagedReader:
        """A reader with a memory of its own."""
        assert [tensor.data_ptr() for tensor in self.live_weights] == self._places, "weights have moved"
        assert self._live is None or lora_is_on(self._live), "the graph computes a LoRA that is switched off"
        return PagedReader(self._trunks, self.shape, n_blocks, self._n_threads)

    def hidden(self, tokens_BT: Tensor, positions_BT: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Final hidden states (B, T, D), of texts that are not remembered.

        As `Transformer.hidden` for rows of documents: where `positions_BT` start again at 0 another document begins,
        and none sees another. `mask` is not read, for it can say nothing else here.
        """
        B, T = tokens_BT.shape
        pieces, n_blocks = [], 0
        for row, ids in enumerate(tokens_BT.tolist()):
            starts = [0]
            if positions_BT is not None:
                starts += (positions_BT[row % len(positions_BT), 1:] == 0).nonzero().add_(1).flatten().tolist()
            for start, end in zip(starts, [*starts[1:], T], strict=True):
                n = -(-(end - start) // PAGE)
                pieces.append(Piece(ids[start:end], 0, range(n_blocks, n_blocks + n)))
                n_blocks += n
        return self.reader(n_blocks).read(pieces, range(B * T)).view(B, T, -1)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V), fp32, of hidden states (..., D)."""
        logits_MV = self.scores(hidden.reshape(-1, hidden.shape[-1])).logits
        return logits_MV.clone().view(*hidden.shape[:-1], -1)

    def scores(self, hidden_MD: Tensor) -> Scores:
        """Logits of hidden states, and what every choice of a token wants of them."""
        rows = hidden_MD.float().contiguous().numpy()
        n_rows = len(rows)
        if n_rows > MANY:
            rows = np.concatenate([rows, np.zeros((_few_sizes(n_rows) - n_rows, rows.shape[1]), rows.dtype)])
        _put(self._head, self._given, "hidden", rows)
        self._head.infer()
        return Scores(*(torch.from_numpy(output.data[:n_rows]) for output in self._head.output_tensors))


@contextmanager
def torch_rests(model: Transformer | CompiledTransformer) -> Iterator[None]:
    """torch on one thread while a compiled model is at work; nothing changes for one of torch.

    A compiled model's threads wait in a loop for its next call, and torch's would wait for theirs. The number belongs
    to the calling thread.
    """
    before = torch.get_num_threads()
    if isinstance(model, CompiledTransformer):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _give(request: Any, name: str, values: Any) -> None:
    """An input that is read where it lies: the caller keeps it until the request has run."""
    from openvino import Tensor as Shared

    request.set_tensor(name, Shared(values, shared_memory=True))


def _put(request: Any, given: dict[str, Any], name: str, values: Any) -> None:
    """An input, written over the last of its name where the sizes are the same: handing one over takes ten times as
    long."""
    kept = given.get(name)
    if kept is not None and kept.shape == values.shape:
        np.copyto(kept, values)
    else:
        own = np.array(values)  # a copy: the caller's must not be written over
        _give(request, name, own)
        given[name] = own


def _results(request: Any) -> list[Tensor]:
    request.infer()
    return [torch.from_numpy(output.data.copy()) for output in request.output_tensors]


@cache
def has_int8_products() -> bool:
    """Whether OpenVINO multiplies int8 activations here: x86 with VNNI.

    Elsewhere INT8 and INT4 weights are expanded and multiplied in fp32: one token alone by another kernel, at half of
    what two take, whose sums part from theirs by some 1e-6 of them.
    """
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_vnni") or able.get("avx_vnni"))


def can_compile(shape: ModelShape) -> bool:
    """Whether openvino is installed and its graphs can compute this shape."""
    return find_spec("openvino") is not None and not shape.token_shift and shape.ngram_embeddings == 0


def can_compile_live(model: Transformer) -> bool:
    """Whether a graph can read this model's own weights: fp32 ones on the CPU."""
    weights_fit = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
    return can_compile(model.shape) and weights_fit and not isinstance(model, QuantizedTransformer)


def compile_transformer(model: Transformer, live: bool = False) -> CompiledTransformer:
    """The model's graphs, compiled for as many threads as torch has here; the model itself is no longer needed.

    With `live` (see `can_compile_live`) the model is needed and nothing is copied: each call reads its weights as they
    are by then, a LoRA's among them, for a tenth more time than copies in the kernels' own order would take. Other
    kernels compute them, which round a row otherwise in other company. Raises UserError for 4-bit weights of an earlier
    version.
    """
    import openvino as ov

    from talaria.model.openvino_graph import graph_for_one_token, head_graph, trunk_graph

    n_threads = torch.get_num_threads()
    scheme = model.scheme if isinstance(model, QuantizedTransformer) else None
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": n_threads,
        # bfloat16 would be chosen where the processor has it.
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        # A thread that may not leave its core waits for whatever else runs there, and the others wait for it.
        "ENABLE_CPU_PINNING": False,
    }
    group = 0 if scheme is None else _INT8_GROUP
    for_head = settings | {_ACTIVATION_GROUP: group}
    for_trunk = settings | {_ACTIVATION_GROUP: _INT4_GROUP if scheme == "int4" else group}
    core, head_of, trunk_of = ov.Core(), head_graph(model, live), trunk_graph(model, live)
    head = core.compile_model(head_of.graph, "CPU", for_head)
    trunk = core.compile_model(trunk_of.graph, "CPU", for_trunk)
    if live or step_bytes(model) > SMALL:
        trunks = Trunks(trunk, weights=trunk_of.weights)
        return CompiledTransformer(model, trunks, head, n_threads, head_of.weights)
    if model.shape.feed_forward == "gelu":
        # OpenVINO 2026.4 joins two narrow products with only a GELU between them where it knows their sizes, and
        # crashes the process over it (TokenizeMLPSeqSnippets).
        for_trunk["SNIPPETS_MODE"] = "DISABLE"
    single = core.compile_model(graph_for_one_token(model, n_threads), "CPU", for_trunk)
    return CompiledTransformer(model, Trunks(trunk, single), head, n_threads)


def _inputs(pieces: Sequence[Piece], wanted: Sequence[int], empty: int = 0) -> dict[str, Any]:
    """A graph's inputs; `empty` sequences without a token come behind the pieces."""
    ends = [piece.start + len(piece.ids) for piece in pieces]
    blocks = [piece.blocks[: -(-end // PAGE)] for piece, end in zip(pieces, ends, strict=True)]
    starts = [piece.start for piece in pieces]
    if all(len(piece.ids) == 1 for piece in pieces):
        positions = np.array(starts, dtype=np.int64)
    else:
        stretches = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
        positions = np.concatenate(stretches, dtype=np.int64)
    lengths = [len(piece.ids) for piece in pieces] + [0] * empty
    blocks += [blocks[0][:1]] * empty  # which nobody reads
    return {
        "tokens": np.array([token for piece in pieces for token in piece.ids], dtype=np.int64),
        "positions": positions,
        "past_lens": np.array(starts + [0] * empty, dtype=np.int32),
        "subsequence_begins": _begins(lengths),
        "block_indices": np.array([block for own in blocks for block in own], dtype=np.int32),
        "block_indices_begins": _begins([len(own) for own in blocks]),
        "max_context_len": np.array(max(ends), dtype=np.int32),
        "wanted": np.array(wanted, dtype=np.int64),
    }


def _few_sizes(n: int) -> int:
    """n or a little more, 16 sizes at most between a number and its double: OpenVINO makes kernels for each size that
    it has not met, which takes 8 ms in a trunk of 135M parameters and a fifth of a MiB that it never gives back."""
    step = max(8, 1 << n.bit_length() >> 5)
    return -(-n // step) * step


def _begins(lengths: Sequence[int]) -> Any:
    """Where each stretch begins, and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
