"""Products of 8-bit activations and 8-bit weights on a CPU: fp32 (M, K) in, fp32 (M, N) out, by FBGEMM inside torch.

A processor with VNNI multiplies four pairs of bytes where it multiplies one pair of fp32 numbers, and a weight is read
as one byte. torch reaches FBGEMM through its older quantisation interface, which it calls deprecated; hence one file
for it, and a probe: where the interface is gone, or the processor's sums are not exact, nothing here is used.

Legend: M rows of activations, K columns, N rows of a weight.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

_STEPS = 255
ROW_BYTES = 16
"""Of a row: scale, zero, sum of the integers; and the sum of the weights."""
_TINY = torch.finfo(torch.float32).tiny


class PackedInt8:
    """An int8 weight (N, K) in FBGEMM's order, with one fp32 scale for each row."""

    def __init__(self, weight_NK: Tensor, scales_N: Tensor) -> None:
        self._n_weights = weight_NK.numel()
        self._packed = _pack(weight_NK, scales_N)
        self._sums_N = weight_NK.sum(dim=1, dtype=torch.int32) * scales_N

    def product(self, x_MK: Tensor) -> Tensor:
        """x w^T, each row of x rounded to 255 steps between its least and its largest entry; not finite stays so."""
        low_M1, high_M1 = torch.aminmax(x_MK, dim=-1, keepdim=True)
        span_M1 = (high_M1 - low_M1).clamp_min_(_TINY)
        # From 0 to 1 whatever a row holds: with a range for all of them its steps would depend on its company.
        y_MN = _multiply((x_MK - low_M1).div_(span_M1), self._packed)
        return y_MN.mul_(span_M1).addcmul_(low_M1, self._sums_N)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight, and of what FBGEMM and this class keep for each of its rows."""
        return self._n_weights + ROW_BYTES * len(self._sums_N)

    def unpacked(self) -> Tensor:
        """The weight again, int8 (N, K)."""
        q_NK: Tensor = torch.ops.quantized.linear_unpack(self._packed)[0].int_repr()
        return q_NK


@cache
def int8_products_are_exact() -> bool:
    """Whether torch has the kernel and its sums are whole.

    Without VNNI FBGEMM adds pairs of products in 16 bits, and the largest of them do not fit.
    """
    weight_NK = torch.full((32, 64), 127, dtype=torch.int8)
    try:
        y_MN = _multiply(torch.ones(1, 64), _pack(weight_NK, torch.ones(32)))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return torch.allclose(y_MN, torch.tensor(64.0 * 127), rtol=1e-6)


def _multiply(x_MK: Tensor, packed: Any) -> Tensor:
    y_MN: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x_MK, 1 / _STEPS, 0, packed)
    return y_MN


def _pack(weight_NK: Tensor, scales_N: Tensor) -> Any:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*quantiz.*deprecated")
            zeros_N = torch.zeros(len(scales_N), dtype=torch.int64)
            quantised = torch._make_per_channel_quantized_tensor(weight_NK, scales_N.double(), zeros_N, 0)
            return torch.ops.quantized.linear_prepack(quantised, None)
    finally:
        torch.backends.quantized.engine = before
