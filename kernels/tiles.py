"""Tiles of a weight matrix: which program works on which rows and columns."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .philox import GROUP

ROWS = 64
GROUPS = 2
WARPS = 8
"""The tile of the elementwise kernels: 32 weights a thread, 16-byte loads and stores."""
ODD_ROWS = 32
"""Rows of a tile of matrices that are not aligned: each weight takes registers for an address of its own."""


def aligned(*matrices: Tensor) -> bool:
    """Return True if matrices [..., R, C] can be read 16 bytes at a time, along their rows or their columns."""
    return all(
        t.data_ptr() % 16 == 0 and 1 in (strides := t.stride()[-2:]) and (sum(strides) - 1) % 16 == 0 for t in matrices
    )


def height(*matrices: Tensor) -> int:
    """Rows of a tile for these matrices [R, C]."""
    return ROWS if aligned(*matrices) else ODD_ROWS


def count(rows: int, cols: int, height: int = ROWS) -> int:
    """Number of elementwise tiles, of ``height`` rows, that cover a matrix."""
    return triton.cdiv(rows, height) * triton.cdiv(cols, GROUPS * GROUP.value)


@triton.jit
def locate(tile, K, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """Rows [ROWS] and columns [64 * GROUPS] of a tile, int64, and its first group; neighbours share rows."""
    across = tl.cdiv(tl.cast(K, tl.int64), GROUPS * GROUP).to(tl.int32)  # K may end just below 2^31
    group = (tile % across).to(tl.int64) * GROUPS
    rows = (tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return rows, group * GROUP + tl.arange(0, GROUPS * GROUP), group


@triton.jit
def gathered(rows, rows_ptr, N):
    """The rows of the weight that ``rows`` [ROWS] stand for: themselves, or the int64 numbers at ``rows_ptr``."""
    if rows_ptr is None:
        return rows
    else:
        return tl.load(rows_ptr + rows, mask=rows < N, other=0)


@triton.jit
def offsets(rows, cols, stride_row, stride_col):
    """Element offsets [R, C] of int64 rows and columns, since a matrix may have more than 2^31 elements."""
    return rows[:, None] * stride_row + cols[None, :] * stride_col
