"""Linear layers and tables whose weights are 8 or 4 bits wide: (..., K) in, (..., N) out, computed by torch's kernels.

Activations go through the products as bfloat16, because torch's kernels are fast with nothing else; inputs and outputs
keep the model's dtype, and so do norms, residual stream and attention. A module stays on the device it was made on. On
a GPU INT4 has a kernel of its own for single tokens; all else is expanded to bfloat16 for each product, which saves
memory but no time.

Legend: M rows of activations, K columns, N rows of a weight, G groups of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talaria.errors import UserError

GROUP = 32
"""Columns that share a scale and a zero in INT4: the finest that torch's kernel takes."""
BLOCK = 64
"""Rows of INT4 that are packed together; a weight is padded with rows of nothing to a multiple of it."""
INT8_KERNEL_ROWS = 8
"""With more rows of activations the INT8 weight is expanded to bfloat16, piece by piece, and multiplied by oneDNN.

Microseconds on one core of an AMD EPYC (Zen 4), 1536 x 576: kernel 164, 342, 617, 2136 for 1, 8, 16, 64 rows; expanded
277, 384, 460, 937. The sums are over the same integers, so the two ways differ by the order of additions alone.
"""
INT4_KERNEL_ROWS = 96
"""As `INT8_KERNEL_ROWS`, for single positions of many sequences; several positions of one are always expanded.

Kernel 65, 219, 506, 2057 for 1, 8, 16, 64 rows; expanding takes some 1200 for a weight of that size, the product after
it 845 for 64 rows and 9600 for 1000, where the kernel takes 25600. Here the two ways differ: expanded weights are
rounded to bfloat16. The rule above keeps a sequence's answer from depending on how many others run beside it. On a GPU
the same number serves, where the kernel is as slow as expanding at some 48 rows: answers do not change up to it.
"""
EXPAND_AT_ONCE = 1 << 21
"""Weights expanded to bfloat16 at a time, 4 MiB: the workspace of a product, whatever the size of the matrix."""
EXPAND_AT_ONCE_ON_GPU = 1 << 25
"""64 MiB there, where a piece costs launches, however small it is."""
_TILE = 8, 32
"""Rows and columns of a weight that torch's INT4 kernel for GPUs keeps together."""


class Int8Linear(nn.Module):
    """y = scale * (x q^T) + bias; int8 q (N, K) in -127..127, fp32 scale (N), one for each row, symmetric."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight_NK: Tensor, scales_N: Tensor, bias_N: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight_NK)
        self.register_buffer("scales", scales_N)
        self.register_buffer("bias", bias_N)
        # The kernel would round the scales to bfloat16; with ones it leaves them to us, and to fp32.
        self.register_buffer("ones", torch.ones(len(scales_N), dtype=torch.bfloat16, device=weight_NK.device), False)
        # torch 2.13's kernel reads past the end of rows that are not a multiple of 16 long.
        self._kernel_fits = weight_NK.device.type == "cpu" and weight_NK.shape[1] % 16 == 0

    @classmethod
    def of(cls, weight_NK: Tensor, bias_N: Tensor | None = None) -> Int8Linear:
        """Quantise: each row's largest weight becomes 127."""
        scales_N1 = weight_NK.float().abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
        q_NK = (weight_NK / scales_N1).round_().clamp_(-127, 127).to(torch.int8)
        return cls(q_NK, scales_N1.squeeze(1), bias_N)

    def forward(self, x: Tensor) -> Tensor:
        x_MK = x.to(torch.bfloat16).reshape(-1, x.shape[-1])
        if self._kernel_fits and len(x_MK) <= INT8_KERNEL_ROWS:
            sums_MN = torch.ops.aten._weight_int8pack_mm(x_MK, self.weight, self.ones)
        else:
            rows = max(1, _expand_at_once(self.weight) // x_MK.shape[1])
            pieces = [F.linear(x_MK, piece.to(torch.bfloat16)) for piece in torch.split(self.weight, rows)]
            sums_MN = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
        y_MN = torch.mul(sums_MN, self.scales)
        return _finish(y_MN, self.bias, x)

    def dequantised(self) -> Tensor:
        """The weight (N, K) that is computed with, fp32."""
        return self.weight.float() * self.scales[:, None]


class Int8Embedding(nn.Module):
    """Rows of an int8 table (V, D) with one fp32 scale each: int64 ids (...) in, `dtype` (..., D) out."""

    weight: Tensor
    scales: Tensor

    def __init__(self, weight_VD: Tensor, scales_V: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("weight", weight_VD)
        self.register_buffer("scales", scales_V)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.weight[ids] * self.scales[ids].unsqueeze(-1)).to(self.dtype)


class Int4Linear(nn.Module):
    """y = x w^T + bias with w = (q - 8) * scale + zero; q in 0..15, scale and zero bfloat16, shared by 32 columns.

    `packed` holds two q in a byte, in the order of this machine's kernel; `grid` (G, N, 2) scales and zeros.
    """

    packed: Tensor
    grid: Tensor
    bias: Tensor | None

    def __init__(self, q_NK: Tensor, grid_GN2: Tensor, bias_N: Tensor | None = None) -> None:
        """q_NK: uint8, one q each. Raises ValueError where K is not a multiple of 32."""
        super().__init__()
        self.n_rows, self.n_columns = q_NK.shape
        if self.n_columns % GROUP:
            raise ValueError(f"{self.n_columns} columns are not a multiple of {GROUP}; use Int8Linear")
        padding = -self.n_rows % BLOCK
        q_NK = F.pad(q_NK, (0, 0, 0, padding))
        self.on_cpu = q_NK.device.type == "cpu"
        self.on_gpu = q_NK.device.type == "cuda" and _has_gpu_kernel(q_NK.device)
        if self.on_cpu:
            self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack_for_cpu(q_NK.int(), 2))
        elif self.on_gpu:
            self.register_buffer("packed", _pack_for_gpu(q_NK))
        else:
            self.register_buffer("packed", _pack(q_NK, BLOCK // 2))
        self.register_buffer("grid", F.pad(grid_GN2.to(torch.bfloat16), (0, 0, 0, padding)))
        self.register_buffer("bias", bias_N)
        # The order of the bytes: None where this machine's is none that `_unpack` knows, and only the kernel reads it.
        self.block_half = kernel_half_block() if self.on_cpu else BLOCK // 2

    def forward(self, x: Tensor) -> Tensor:
        x_MK = x.to(torch.bfloat16).reshape(-1, x.shape[-1])
        several_positions = x.dim() > 2 and x.shape[-2] > 1
        single = not several_positions and len(x_MK) <= INT4_KERNEL_ROWS
        if self.block_half is None or (self.on_cpu and single):
            y_MN = torch.ops.aten._weight_int4pack_mm_for_cpu(x_MK, self.packed, GROUP, self.grid)
        elif self.on_gpu and single:
            y_MN = torch.ops.aten._weight_int4pack_mm(x_MK, self.packed, GROUP, self.grid)
        else:
            pieces = [x_MK @ weight_KN for weight_KN in self._expanded()]
            y_MN = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
        return _finish(y_MN[:, : self.n_rows], self.bias, x)

    def quantised(self) -> Tensor:
        """q as uint8 (N, K)."""
        K, N = self.n_columns, self.n_rows
        if self.on_gpu:
            return _unpack_for_gpu(self.packed)[:N].contiguous()
        if self.block_half is not None:
            return _unpack(self.packed, K, self.block_half).T[:N].contiguous()
        # An order unknown to us, but not to the kernel: multiplied by the identity at scale 1, the weight comes out.
        plain = torch.tensor([1.0, 8.0], dtype=torch.bfloat16).expand_as(self.grid).contiguous()
        eye = torch.eye(K, dtype=torch.bfloat16)
        q_KN: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(eye, self.packed, GROUP, plain)
        return q_KN.T[:N].to(torch.uint8)

    def scales_and_steps(self) -> tuple[Tensor, Tensor]:
        """Scale (fp32) and the q that stands for 0 (uint8) of each group, (N, G, 1) each.

        Raises UserError where the zeros are no whole numbers of steps, as earlier versions chose them.
        """
        scales_NG1, zeros_NG1 = self.grid[:, : self.n_rows].float().transpose(0, 1).unsqueeze(2).unbind(-1)
        steps_NG1 = 8 - zeros_NG1 / scales_NG1
        whole_NG1 = steps_NG1.round()
        # bfloat16 moves a zero of at most 8 steps by less than a thirtieth of one.
        if not bool(((steps_NG1 - whole_NG1).abs() < 1 / 30).all() and (whole_NG1 >= 0).all()):
            raise UserError("4-bit weights of an earlier version; quantize the model again")
        return scales_NG1.contiguous(), whole_NG1.to(torch.uint8).contiguous()

    def dequantised(self) -> Tensor:
        """The weight (N, K) that the kernel computes with, fp32."""
        scales_NG1, zeros_NG1 = self.grid[:, : self.n_rows].float().transpose(0, 1).unsqueeze(2).unbind(-1)
        q_NGg = self.quantised().view(self.n_rows, -1, GROUP).float()
        return ((q_NGg - 8) * scales_NG1 + zeros_NG1).view(self.n_rows, self.n_columns)

    def _expanded(self) -> Iterator[Tensor]:
        """The weight's transpose rounded to bfloat16, (K, n) for a stretch of rows at a time."""
        assert self.block_half is not None
        K = self.n_columns
        n_at_once = max(1, _expand_at_once(self.packed) // (K * BLOCK)) * BLOCK
        of_a_piece = n_at_once // _TILE[0] if self.on_gpu else n_at_once
        for packed, grid_GnP in zip(
            torch.split(self.packed, of_a_piece), torch.split(self.grid, n_at_once, dim=1), strict=True
        ):
            # Computed in fp32 and rounded once.
            if self.on_gpu:
                q_nGg = (_unpack_for_gpu(packed).view(torch.int8) - 8).to(torch.bfloat16).view(-1, K // GROUP, GROUP)
                scales_nG1, zeros_nG1 = grid_GnP.transpose(0, 1).unsqueeze(2).unbind(-1)
                yield torch.addcmul(zeros_nG1, q_nGg, scales_nG1).reshape(-1, K).T
            else:
                q_Kn = _unpack(packed, K, self.block_half)
                q_Ggn = (q_Kn.view(torch.int8) - 8).to(torch.bfloat16).view(-1, GROUP, len(packed))
                scales_G1n, zeros_G1n = grid_GnP.unsqueeze(1).unbind(-1)
                yield torch.addcmul(zeros_G1n, q_Ggn, scales_G1n).view(K, -1)


def _finish(y_MN: Tensor, bias_N: Tensor | None, x: Tensor) -> Tensor:
    """Rows of sums in `x`'s dtype and leading dimensions, the bias added."""
    y = y_MN.to(x.dtype).view(*x.shape[:-1], y_MN.shape[1])
    return y if bias_N is None else y + bias_N


def _expand_at_once(weight: Tensor) -> int:
    return EXPAND_AT_ONCE if weight.device.type == "cpu" else EXPAND_AT_ONCE_ON_GPU


def _pack(q_NK: Tensor, half: int) -> Tensor:
    """uint8 (N, K) of 0..15 to bytes (N, K/2): blocks of 2 * `half` rows, by columns, rows r and r + half in a byte."""
    N, K = q_NK.shape
    low_BKH, high_BKH = q_NK.view(-1, 2, half, K).permute(1, 0, 3, 2).unbind()
    return (low_BKH | high_BKH << 4).reshape(N, K // 2)


def _unpack(packed: Tensor, K: int, half: int) -> Tensor:
    """The inverse of `_pack`, transposed: uint8 (K, N)."""
    bytes_BKH = packed.view(-1, K, half)
    q_BKR = torch.stack([bytes_BKH & 15, bytes_BKH >> 4], dim=2).view(-1, K, 2 * half)
    # Moved 8 bytes at a time.
    return q_BKR.view(torch.int64).transpose(0, 1).contiguous().view(torch.uint8).view(K, -1)


@cache
def kernel_half_block() -> int | None:
    """`half` of this CPU's INT4 layout, which torch does not document: 32 with AVX-512, 16 with AVX2, else None."""
    q_NK = torch.arange(2 * BLOCK * GROUP).remainder(13).to(torch.uint8).view(2 * BLOCK, GROUP)
    theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q_NK.int(), 2)
    return next((half for half in (32, 16) if torch.equal(theirs, _pack(q_NK, half))), None)


def _has_gpu_kernel(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def _pack_for_gpu(q_NK: Tensor) -> Tensor:
    """uint8 (N, K) of 0..15 to what torch's kernel for GPUs reads: int32 (N/8, K/32, 32, 1), a tile's q in a row."""
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack(q_NK[:, ::2] << 4 | q_NK[:, 1::2], 2)
    return packed


def _unpack_for_gpu(packed: Tensor) -> Tensor:
    """The inverse of `_pack_for_gpu`: uint8 (N, K)."""
    rows, columns = _TILE
    tiles_n, tiles_k = packed.shape[:2]
    q_RCrc = _nibbles(packed)[..., gpu_order(_pack_for_gpu, packed.device)].view(tiles_n, tiles_k, rows, columns)
    return q_RCrc.transpose(1, 2).reshape(tiles_n * rows, tiles_k * columns)


def _nibbles(packed: Tensor) -> Tensor:
    """uint8 (N/8, K/32, 256): a tile's q, as they lie."""
    bytes_RCb = packed.view(torch.uint8).flatten(2)
    return torch.stack([bytes_RCb & 15, bytes_RCb >> 4], dim=-1).flatten(2)


@cache
def gpu_order(pack: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """Where in a tile as it lies is the q of row r and column c, int64 (256,) by 32 r + c: torch does not document it,
    so two tiles are packed that hold each place's number, its low and its high half."""
    place = torch.arange(_TILE[0] * _TILE[1], dtype=torch.uint8, device=device).view(_TILE)
    low, high = (_nibbles(pack(half)).flatten().long() for half in (place & 15, place >> 4))
    return (low + 16 * high).argsort()
