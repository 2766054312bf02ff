"""The trunk as OpenVINO graphs: weights in, a forward pass over paged keys and values as one call out.

    trunk_graph(model)    # tokens of several sequences, one behind the other -> final hidden states of the wanted ones
    head_graph(model)     # hidden states -> logits, and the logarithm of their exponentials' sum
    trunk_graph(model, live=True).weights    # inputs of the trunk besides: the model's own weights, by name

A step of a small model on a CPU is hundreds of small operations, and calling them one by one from Python costs more
than they do; a compiled graph runs them in one call, with kernels that multiply packed integer weights. The graph
computes what `transformer.Transformer` does (tests hold the two to each other) for shapes without token shift and
n-gram tables.

Legend: N tokens of all sequences, M wanted ones, D model width, H query heads, K key-value heads, E head width, V
vocabulary, F feed-forward width, G groups of columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as ops
from openvino.op import _PagedAttentionExtension
from torch import Tensor, nn

from talaria.model.attention import rope_frequencies
from talaria.model.lora import LoraLinear
from talaria.model.norms import RMSNorm
from talaria.model.quantized import QuantizedTransformer
from talaria.model.quantized_linear import GROUP, Int4Linear, Int8Embedding, Int8Linear
from talaria.model.shape import ModelShape
from talaria.model.transformer import Block, Transformer

Node = Any
"""OpenVINO's nodes and outputs, which its functions take alike."""
_ALL = slice(None)


@dataclass(frozen=True)
class Graph:
    """Not yet compiled, with copies of the weights or, `live`, without: then each weight is one more input, and
    `weights` are the arrays to give them, which are the model's own memory."""

    graph: ov.Model
    weights: Mapping[str, Any]


def trunk_graph(model: Transformer, live: bool = False, joined: bool = False) -> Graph:
    """The trunk of a model of any weights; with `live` of fp32 ones on this CPU, LoRA or not. `joined`: SwiGLU's two
    products as one."""
    layers, shape = _Layers(live), model.shape
    tokens_N, positions_N = _input("tokens", np.int64), _input("positions", np.int64)
    # Which tokens are whose: OpenVINO's names for the inputs of its paged attention.
    paging = [_input(name, np.int32) for name in PAGING]
    longest = _input("max_context_len", np.int32, [])
    wanted_M = _input("wanted", np.int64)
    caches: list[Node] = []
    x_ND = layers.embedding(model.embed, tokens_N)
    rope = None
    if shape.positions == "rope":
        rope = layers.rope(shape, positions_N)
    else:
        x_ND = ops.add(x_ND, ops.gather(layers.weight(model.position_embed.weight), positions_N, _integer(0)))
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        cache = [
            _input(f"{name}.{layer}", np.float32, [-1, shape.n_kv_heads, -1, shape.d_head])
            for name in ("key_cache", "value_cache")
        ]
        caches += cache
        h_ND = layers.norm(block.attention_norm, x_ND)
        attended = layers.attention(block.attention, shape, h_ND, rope, [*cache, *paging], longest)
        x_ND = ops.add(x_ND, layers.linear(block.attention.out, attended))
        h_ND = layers.norm(block.feed_forward_norm, x_ND)
        x_ND = ops.add(x_ND, layers.feed_forward(block.feed_forward, shape, h_ND, joined))
    hidden_MD = layers.norm(model.final_norm, ops.gather(x_ND, wanted_M, _integer(0)))
    inputs = [tokens_N, positions_N, *paging, longest, wanted_M, *caches, *layers.inputs]
    return Graph(ov.Model([hidden_MD], inputs, "trunk"), layers.weights)


def graph_for_one_token(model: Transformer, n_sequences: int) -> ov.Model:
    """The trunk for one token of the first of some sequences: with every size known beforehand, less is decided at
    each call. A single row gains by one product of twice the width, several by SwiGLU within the product."""
    graph = trunk_graph(model, joined=True).graph
    sizes = {item.any_name: item.partial_shape for item in graph.inputs}
    sizes |= {name: ov.PartialShape([1]) for name in ("tokens", "positions", "wanted")}
    sizes["past_lens"] = ov.PartialShape([n_sequences])
    sizes |= {name: ov.PartialShape([n_sequences + 1]) for name in ("subsequence_begins", "block_indices_begins")}
    graph.reshape(sizes)
    return graph


def head_graph(model: Transformer, live: bool = False) -> Graph:
    """The head; `live` as for the trunk."""
    layers = _Layers(live)
    hidden_MD = _input("hidden", np.float32, [-1, model.shape.d_model])
    if isinstance(model, QuantizedTransformer):
        logits_MV = layers.linear(model.output, hidden_MD)
    else:
        logits_MV = ops.matmul(hidden_MD, layers.weight(model.head_weight()), False, True)
    # In two steps, since logits may be too large for the exponential. The best token is not looked for here:
    # OpenVINO's search takes ten times as long as numpy's.
    most_M1 = ops.reduce_max(logits_MV, _integers([1]), True)
    sums_M1 = ops.reduce_sum(ops.exp(ops.subtract(logits_MV, most_M1)), _integers([1]), True)
    log_totals_M = ops.squeeze(ops.add(ops.log(sums_M1), most_M1), _integers([1]))
    return Graph(ov.Model([logits_MV, log_totals_M], [hidden_MD, *layers.inputs], "head"), layers.weights)


class _Layers:
    """Parts of a model as nodes. Of live weights `inputs` are the nodes and `weights` the arrays, as they come up."""

    def __init__(self, live: bool) -> None:
        self._live = live
        self.inputs: list[Node] = []
        self.weights: dict[str, Any] = {}

    def attention(
        self, attention: Any, shape: ModelShape, h_ND: Node, rope: Node | None, memory: list[Node], longest: Node
    ) -> Node:
        H, K, E = shape.n_heads, shape.n_kv_heads, shape.d_head
        qkv = self.linear(attention.qkv, h_ND)
        if shape.qk_norm:
            parts = ops.variadic_split(qkv, _integer(1), _integers(shape.qkv_rows))
            queries = self.norm(attention.query_norm, _reshape(parts.output(0), [0, H, E]))
            keys = self.norm(attention.key_norm, _reshape(parts.output(1), [0, K, E]))
            qk, values = ops.concat([queries, keys], 1), parts.output(2)
        else:
            parts = ops.variadic_split(qkv, _integer(1), _integers([(H + K) * E, K * E]))
            qk, values = _reshape(parts.output(0), [0, H + K, E]), parts.output(1)
        if rope is not None:
            qk = _rotate(qk, rope, E)
        parts = ops.variadic_split(_reshape(qk, [0, (H + K) * E]), _integer(1), _integers([H * E, K * E]))
        return _paged_attention([parts.output(0), parts.output(1), values], memory, longest, K, E)

    def feed_forward(self, feed_forward: nn.Module, shape: ModelShape, h_ND: Node, joined: bool) -> Node:
        if shape.feed_forward == "swiglu":
            if joined:
                halves = ops.variadic_split(self.linear(feed_forward.up, h_ND), _integer(1), _integers(shape.up_rows))
                gate_NF, up_NF = halves.output(0), halves.output(1)
            else:
                first, n_rows = shape.up_rows[0], sum(shape.up_rows)
                gate_NF = self.linear(feed_forward.up, h_ND, slice(first))
                up_NF = self.linear(feed_forward.up, h_ND, slice(first, n_rows))
            h_NF = ops.multiply(ops.swish(gate_NF), up_NF)
        else:
            h_NF = ops.gelu(self.linear(feed_forward.up, h_ND), "tanh")
        return self.linear(feed_forward.down, h_NF)

    def rope(self, shape: ModelShape, positions_N: Node) -> tuple[Node, Node]:
        """cos and sin of each position's angles, (N, 1, E) each."""
        frequencies = self._constant(rope_frequencies(shape)[None])
        angles = ops.multiply(ops.unsqueeze(ops.convert(positions_N, "f32"), _integer(1)), frequencies)
        tables = []
        for table in (ops.cos(angles), ops.sin(angles)):
            tables.append(ops.unsqueeze(ops.concat([table, table], -1), _integer(1)))
        return tables[0], tables[1]

    def norm(self, norm: nn.Module, x: Node) -> Node:
        """RMSNorm or LayerNorm over the last dimension."""
        if isinstance(norm, RMSNorm):
            square = ops.reduce_mean(ops.power(x, _number(2.0)), _integers([-1]), True)
            reciprocal = ops.divide(_number(1.0), ops.sqrt(ops.add(square, _number(norm.eps))))
            return ops.multiply(ops.multiply(x, reciprocal), self.weight(norm.weight))
        assert isinstance(norm, nn.LayerNorm)
        y = ops.multiply(ops.mvn(x, _integers([-1]), True, norm.eps, "INSIDE_SQRT"), self.weight(norm.weight))
        return y if norm.bias is None else ops.add(y, self.weight(norm.bias))

    def embedding(self, table: nn.Module, ids: Node) -> Node:
        if isinstance(table, Int8Embedding):
            rows = ops.convert(ops.gather(self.weight(table.weight), ids, _integer(0)), "f32")
            return ops.multiply(rows, ops.gather(self.weight(table.scales[:, None]), ids, _integer(0)))
        assert isinstance(table, nn.Embedding)
        return ops.gather(self.weight(table.weight), ids, _integer(0))

    def linear(self, linear: Any, x: Node, rows: slice = _ALL) -> Node:
        """The product with these rows of the weight."""
        if isinstance(linear, LoraLinear):
            low = ops.matmul(x, self.weight(linear.down), False, True)
            difference = ops.matmul(low, self.weight(linear.up[rows]), False, True)
            return ops.add(self.linear(linear.plain, x, rows), ops.multiply(difference, _number(linear.scale)))
        if isinstance(linear, Int4Linear):
            weight = self._int4(linear, rows)
        elif isinstance(linear, Int8Linear):
            integers = ops.convert(self.weight(linear.weight[rows]), "f32")
            weight = ops.multiply(integers, self.weight(linear.scales[rows, None]))
        else:
            assert isinstance(linear, nn.Linear)
            weight = self.weight(linear.weight[rows])
        y = ops.matmul(x, weight, False, True)
        return y if linear.bias is None else ops.add(y, self.weight(linear.bias[rows]))

    def _int4(self, linear: Int4Linear, rows: slice) -> Node:
        """(q - zero) * scale, the zero a whole number of steps: the form that has kernels."""
        q_NK = linear.quantised().cpu()[rows]
        packed = (q_NK[:, ::2] | q_NK[:, 1::2] << 4).numpy()
        scales_NG1, steps_NG1 = (values[rows] for values in linear.scales_and_steps())
        N, G = scales_NG1.shape[:2]
        owned = ov.Tensor(ov.Type.u4, [N, G, GROUP])
        owned.copy_from(ov.Tensor(packed, [N, G, GROUP], ov.Type.u4))  # which lives no longer than the array
        q = ops.convert(ops.constant(owned), "f32")
        zeros = ops.convert(self._constant(steps_NG1), "f32")
        weight_NGg = ops.multiply(ops.subtract(q, zeros), self._constant(scales_NG1))
        return ops.reshape(weight_NGg, _integers([N, linear.n_columns]), False)

    def weight(self, tensor: Tensor) -> Node:
        if not self._live:
            return self._constant(tensor)
        assert tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()
        name = f"weight.{len(self.inputs)}"
        self.inputs.append(_input(name, np.float32, [-1, *tensor.shape[1:]]))
        self.weights[name] = tensor.detach().numpy()
        return self.inputs[-1]

    def _constant(self, tensor: Tensor) -> Node:
        if tensor.is_floating_point():
            tensor = tensor.float()
        return ops.constant(tensor.detach().cpu().contiguous().numpy())


PAGING = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")


def _paged_attention(qkv: list[Node], memory: list[Node], longest: Node, n_kv_heads: int, d_head: int) -> Node:
    """OpenVINO's paged attention, whose many extensions are left empty; their order is that of its documentation."""
    nothing = [_empty(kind) for kind in (np.int32, np.int32, np.int32, np.float32, np.float32)]
    window, rotated, deltas, rotation, threshold = nothing
    sinks = ops.constant(np.zeros((0, 0, 0, 0), dtype=np.float32))
    inputs = [*qkv, *memory, _number(1 / math.sqrt(d_head)), _integer32(0), _empty(np.float32), longest, window]
    inputs += [rotated, deltas, rotation, threshold, _integer32(0), _integer32(0), sinks, _integer32(0)]
    inputs += [_empty(np.int32) for _ in range(4)] + [_empty(np.uint8), _empty(np.int32)]
    node = _PagedAttentionExtension([item.output(0) if hasattr(item, "output") else item for item in inputs])
    for which in "kv":
        node.get_rt_info()[f"num_{which}_heads"] = n_kv_heads
        node.get_rt_info()[f"{which}_head_size"] = d_head
    return node.output(0)


def _rotate(x_NHE: Node, rope: tuple[Node, Node], d_head: int) -> Node:
    """As `attention.rotate`, in the form that OpenVINO knows as one operation."""
    cos, sin = rope
    half = d_head // 2
    first = ops.slice(x_NHE, _integers([0]), _integers([half]), _integers([1]), _integers([2]))
    second = ops.slice(x_NHE, _integers([half]), _integers([d_head]), _integers([1]), _integers([2]))
    turned = ops.concat([ops.negative(second), first], -1)
    return ops.add(ops.multiply(x_NHE, cos), ops.multiply(turned, sin))


def _input(name: str, kind: type, size: list[int] | None = None) -> Node:
    parameter = ops.parameter(ov.PartialShape([-1] if size is None else size), kind, name=name)
    parameter.output(0).set_names({name})
    return parameter


def _reshape(x: Node, size: list[int]) -> Node:
    return ops.reshape(x, _integers(size), True)


def _number(value: float) -> Node:
    return ops.constant(np.array(value, dtype=np.float32))


def _integer(value: int) -> Node:
    return ops.constant(np.array(value, dtype=np.int64))


def _integer32(value: int) -> Node:
    return ops.constant(np.array(value, dtype=np.int32))


def _integers(values: list[int] | tuple[int, ...]) -> Node:
    return ops.constant(np.array(values, dtype=np.int64))


def _empty(kind: type) -> Node:
    return ops.constant(np.zeros(0, dtype=kind))
