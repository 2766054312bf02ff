"""A trunk in, the same trunk with weights of 8 or 4 bits out.

    model = quantize(model, "int4")   # takes the weights over: the model given is empty afterwards

Norms, biases and learned positions keep their dtype. Tables are int8 with a scale for each row under either scheme, and
one table serves embedding and head where the two are tied. "int4" rounds the feed-forward's matrices to
4 bits, four fifths of the weights, all but those of the first fifteenth of the blocks; they and attention's, which lose
several times as much by 4 bits for their size, are int8 (docs/results.md has the figures).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from talaria.errors import UsageError
from talaria.model.linear import Linear
from talaria.model.quantized_linear import GROUP, Int4Linear, Int8Embedding, Int8Linear
from talaria.model.shape import ModelShape
from talaria.model.transformer import Transformer

Scheme = Literal["int8", "int4"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
# INT4's candidate grids: the parts of a group's range that the 16 steps span, and where in the range they lie.
_SPANS = (1.0, 0.9, 0.8)
_PLACES = (0.0, 0.5, 1.0)
_FITS = 2
_WEIGHTS_AT_ONCE = 1 << 18
_PROBE_ROWS, _PROBE_POSITIONS = 8, 256
_SMALLEST_SCALE = 1e-30


class QuantizedTransformer(Transformer):
    """A trunk for inference, whose matrices and tables are those of `quantized_linear`."""

    def __init__(self, shape: ModelShape, scheme: Scheme) -> None:
        super().__init__(shape, device="meta")
        self.scheme = scheme
        self.output: nn.Module = nn.Identity()

    def head(self, hidden_BTD: Tensor) -> Tensor:
        logits: Tensor = self.output(hidden_BTD)
        return logits if logits.dtype == torch.float64 else logits.float()

    def head_weight(self) -> Tensor:
        """The output table (V, D) that the head computes with, fp32, made anew at each call."""
        assert isinstance(self.output, Int8Linear)
        return self.output.dequantised()


def check_scheme(scheme: str) -> Scheme:
    """The scheme of that name. Raises UsageError for any other."""
    for known in SCHEMES:
        if scheme == known:
            return known
    raise UsageError(f"quantize={scheme!r} is unknown; choose {' or '.join(SCHEMES)}")


@torch.no_grad()
def quantize(model: Transformer, scheme: Scheme) -> QuantizedTransformer:
    """The trunk with int8 or int4 weights, on the model's device.

    Weights go over matrix by matrix, each freed before the next, so `model` cannot be used afterwards. "int8": a scale
    for each row. "int4": a scale and a zero for each 32 columns of a row of the feed-forward's matrices; one whose
    columns are not a multiple of 32 becomes int8 like attention's: `int8_instead` names them.
    """
    dtype = next(model.parameters()).dtype
    powers = _input_powers(model) if scheme == "int4" else {}
    quantized = QuantizedTransformer(model.shape, scheme)
    table = Int8Linear.of(model.head_weight())
    quantized.output = table
    if model.shape.tie_embeddings:
        embed = Int8Embedding(table.weight, table.scales, dtype)
    else:
        embed = _int8_embedding(model.embed)
        del model.unembed, quantized.unembed
    del model.embed
    quantized.set_submodule("embed", embed)
    for i in range(model.shape.ngram_embeddings):
        quantized.ngram_embeds[i] = _int8_embedding(model.ngram_embeds[i])
        model.ngram_embeds[i] = nn.Identity()
    if model.shape.positions == "learned":
        quantized.position_embed = model.position_embed
    quantized.blocks, quantized.final_norm = model.blocks, model.final_norm
    for name, linear in list(quantized.blocks.named_modules()):
        if isinstance(linear, Linear):
            quantized.blocks.set_submodule(
                name, _linear(linear, powers.get(name) if _takes_int4(name, model.shape.n_layers) else None)
            )
    return quantized.requires_grad_(False).eval()


def int8_instead(model: QuantizedTransformer) -> list[str]:
    """Names of the feed-forward's matrices that are int8 in a model of scheme "int4": INT4 cannot take their width."""
    modules = model.blocks.named_modules() if model.scheme == "int4" else ()
    return [
        f"blocks.{name}"
        for name, module in modules
        if isinstance(module, Int8Linear) and _takes_int4(name, model.shape.n_layers)
    ]


def to_bfloat16(model: Transformer) -> None:
    """Make what is not rounded bfloat16, and so activations, keys and values: a quantized model's scales stay."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.to(torch.bfloat16), requires_grad=False))
        if isinstance(module, Int8Embedding):
            module.dtype = torch.bfloat16
        if isinstance(module, Int8Linear | Int4Linear) and module.bias is not None:
            module.bias = module.bias.to(torch.bfloat16)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, scales and zeros included; what is shared counts once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def step_bytes(model: Transformer) -> int:
    """Bytes of weights that a step reads: of an embedding that is not the head's table too it looks up rows alone."""
    return weight_bytes(model) - (0 if model.shape.tie_embeddings else weight_bytes(model.embed))


def _takes_int4(name: str, n_layers: int) -> bool:
    """Whether INT4 rounds that matrix of the blocks to 4 bits, where its width allows it."""
    layer, part = name.split(".")[:2]
    return part == "feed_forward" and int(layer) >= n_int8_blocks(n_layers)


def n_int8_blocks(n_layers: int) -> int:
    """The blocks, the first ones, that INT4 leaves at 8 bits."""
    return n_layers // 15


def _linear(linear: Linear, importance_K: Tensor | None) -> Int8Linear | Int4Linear:
    bias_N = None if linear.bias is None else linear.bias.detach()
    if importance_K is None or linear.in_features % GROUP:
        return Int8Linear.of(linear.weight, bias_N)
    return Int4Linear(*to_int4(linear.weight, importance_K), bias_N)


def _int8_embedding(embedding: nn.Module) -> Int8Embedding:
    assert isinstance(embedding, nn.Embedding)
    table = Int8Linear.of(embedding.weight)
    return Int8Embedding(table.weight, table.scales, embedding.weight.dtype)


def to_int4(weight_NK: Tensor, importance_K: Tensor) -> tuple[Tensor, Tensor]:
    """q (N, K) uint8 in 0..15, and scale and zero of each group (K/32, N, 2) bfloat16: w ~ (q - 8) * scale + zero.

    The zero is a whole number of steps, as far as bfloat16 holds it, so that some q stands for 0: kernels that multiply
    integers want it so. `importance_K`: what an error in each column counts; the mean square of its input, for a
    product's error.
    """
    N, K = weight_NK.shape
    importance_Gg = importance_K.float().view(K // GROUP, GROUP)
    q_NK = torch.empty(N, K, dtype=torch.uint8, device=weight_NK.device)
    grid_NG2 = torch.empty(N, K // GROUP, 2, dtype=torch.bfloat16, device=weight_NK.device)
    rows_at_once = max(1, _WEIGHTS_AT_ONCE // K)
    for start in range(0, N, rows_at_once):
        rows = slice(start, start + rows_at_once)
        w_RGg = weight_NK[rows].float().reshape(-1, K // GROUP, GROUP)
        scale_RG1, step_RG1 = _best_grid(w_RGg, importance_Gg)
        grid_NG2[rows] = torch.cat([scale_RG1, (8 - step_RG1) * scale_RG1], dim=-1)
        q_NK[rows] = _nearest(w_RGg, scale_RG1, step_RG1).flatten(1)
    return q_NK, grid_NG2.transpose(0, 1).contiguous()


def _best_grid(w_RGg: Tensor, importance_Gg: Tensor) -> tuple[Tensor, Tensor]:
    """Scale, and the q that stands for 0, (R, G, 1) each, of the least squared error of each group.

    Tried are grids over the whole of a group's range and over parts of it, as an outlier clipped can cost less than
    coarser steps for the 31 others, with 0 at either of the two steps next to it; each scale is then fitted to the
    steps that its weights take, and they to it, in turns.
    """
    low_RG1 = w_RGg.amin(dim=-1, keepdim=True).clamp_max(0)
    high_RG1 = w_RGg.amax(dim=-1, keepdim=True).clamp_min(0)
    best_error_RG1 = torch.full_like(low_RG1, torch.inf)
    best_scale_RG1, best_step_RG1 = torch.ones_like(low_RG1), torch.zeros_like(low_RG1)
    for span in _SPANS:
        for place in _PLACES if span < 1 else (0.0,):
            start_RG1 = torch.lerp(low_RG1, high_RG1, (1 - span) * place)
            first_RG1 = _positive_bfloat16((high_RG1 - low_RG1) * (span / 15))
            below_RG1 = (-start_RG1 / first_RG1).floor()
            for step_RG1 in (below_RG1.clamp(0, 15), (below_RG1 + 1).clamp(0, 15)):
                scale_RG1 = first_RG1
                for _ in range(_FITS):
                    steps_RGg = _nearest(w_RGg, scale_RG1, step_RG1).sub_(step_RG1)
                    scale_RG1 = _fitted(w_RGg, importance_Gg, steps_RGg)
                steps_RGg = _nearest(w_RGg, scale_RG1, step_RG1).sub_(step_RG1)
                square_RGg = steps_RGg.mul_(scale_RG1).sub_(w_RGg).square_()
                error_RG1 = square_RGg.mul_(importance_Gg).sum(dim=-1, keepdim=True)
                better_RG1 = error_RG1 < best_error_RG1
                best_error_RG1 = torch.where(better_RG1, error_RG1, best_error_RG1)
                best_scale_RG1 = torch.where(better_RG1, scale_RG1, best_scale_RG1)
                best_step_RG1 = torch.where(better_RG1, step_RG1, best_step_RG1)
    return best_scale_RG1, best_step_RG1


def _fitted(w_RGg: Tensor, importance_Gg: Tensor, steps_RGg: Tensor) -> Tensor:
    """Scale (R, G, 1) of the least weighted squared error of steps * scale against the weights."""
    weighted_RGg = steps_RGg * importance_Gg
    power_RG1 = (weighted_RGg * steps_RGg).sum(dim=-1, keepdim=True)
    return _positive_bfloat16((weighted_RGg * w_RGg).sum(dim=-1, keepdim=True) / power_RG1.clamp_min(_SMALLEST_SCALE))


def _positive_bfloat16(scale: Tensor) -> Tensor:
    """Weights that are all 0 have no range, and any positive scale will do."""
    return scale.clamp_min(_SMALLEST_SCALE).bfloat16().float()


def _nearest(w_RGg: Tensor, scale_RG1: Tensor, step_RG1: Tensor) -> Tensor:
    """q in 0..15, fp32, of the grid's point nearest to each weight."""
    return (w_RGg / scale_RG1).add_(step_RG1).round_().clamp_(0, 15)


def _input_powers(model: Transformer) -> dict[str, Tensor]:
    """Mean square of each input column of the blocks' matrices, fp32 (K), by name.

    Read off a pass over random tokens: no text is needed, the same model gives the same weights anywhere, and a few
    columns that carry large activations are what matters, and they do so for any input.
    """
    generator = torch.Generator().manual_seed(0)
    size = (_PROBE_ROWS, min(model.shape.context, _PROBE_POSITIONS))
    tokens_BT = torch.randint(model.shape.vocab_size, size, generator=generator)
    powers: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.blocks.named_modules():
        if isinstance(module, Linear):

            def note(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                powers[name] = inputs[0].float().square().flatten(0, -2).mean(dim=0)

            hooks.append(module.register_forward_pre_hook(note))
    try:
        model.hidden(tokens_BT.to(next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    # A column that random tokens happen not to use must not become free of charge.
    return {name: power_K + 0.01 * power_K.mean() + _SMALLEST_SCALE for name, power_K in powers.items()}
