"""Tiles of a weight matrix: the rows and columns of each program, and their position in the contract's matrix."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import KLTerm, Mask

from .philox import GROUP

ROWS = 64
GROUPS = 2
WARPS = 8
"""The tile of the elementwise kernels: 32 weights a thread, 16-byte loads and stores."""
LAUNCH: dict[str, Any] = {"GROUPS": GROUPS, "num_warps": WARPS, "enable_fp_fusion": False}
"""The options of every launch of an elementwise kernel."""
ODD_ROWS = 32
"""Rows of a tile if the matrices are not aligned: each weight then needs registers for its own address."""


def aligned(*matrices: Tensor) -> bool:
    """Return True if matrices [..., R, C] can be read 16 bytes at a time, along their rows or their columns."""
    return all(
        t.data_ptr() % 16 == 0 and 1 in (strides := t.stride()[-2:]) and (sum(strides) - 1) % 16 == 0 for t in matrices
    )


def height(mask: Mask, *matrices: Tensor) -> int:
    """Return the number of rows of a tile, for these matrices [R, C] under a mask."""
    return ROWS if mask.col % 16 == 0 and aligned(*matrices) else ODD_ROWS


def count(rows: int, cols: int, height: int = ROWS) -> int:
    """Return the number of elementwise tiles of ``height`` rows that cover a matrix."""
    return triton.cdiv(rows, height) * triton.cdiv(cols, GROUPS * GROUP.value)


def grid(mask: Mask, rows: int, cols: int, height: int = ROWS, draws: int = 1) -> tuple[int]:
    """Return the grid of a launch: for each draw, the tiles that cover the matrix and the part of a group before it."""
    return (count(rows, cols + mask.col % GROUP.value, height) * draws,)


def address(mask: Mask) -> tuple[Tensor, Tensor, int, int | None, int | None]:
    """Return the arguments seed, draws, stream, first_row and first_group of a kernel.

    The last two are None if the matrix is whole: then the kernel has no instructions for them. For a shard they have 32
    bits, or 64 bits from row 2^31 on. So a kernel declares no type for them.
    """
    whole = mask.row == 0 and mask.col < GROUP.value
    return mask.seed, mask.draw, mask.stream, *((None, None) if whole else (mask.row, mask.col // GROUP.value))


def shift(mask: Mask) -> int | None:
    """Return the argument shift of a kernel: the number of columns of its first group before the matrix, None if 0."""
    return mask.col % GROUP.value or None


def kl_arguments(kl: KLTerm | None) -> tuple[Tensor | None, Tensor | None, int, int]:
    """Return the arguments prior, kl_grad, prior_row and prior_col of a kernel."""
    return (None, None, 0, 0) if kl is None else (kl.prior_logits, kl.grad, *kl.prior_logits.stride())


@triton.jit
def after(index, first):
    """Return ``index + first``; None counts as 0."""
    if first is None:
        return index
    else:
        return index + first


@triton.jit
def locate(tile, K, shift, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """Return the rows [ROWS] and columns [64 * GROUPS] of a tile, int64, and its first group; neighbours share rows."""
    across = tl.cdiv(after(tl.cast(K, tl.int64), shift), GROUPS * GROUP).to(tl.int32)  # K may end just below 2^31
    group = (tile % across).to(tl.int64) * GROUPS
    rows = (tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = group * GROUP + tl.arange(0, GROUPS * GROUP)
    if shift is not None:
        cols -= shift
    return rows, cols, group


@triton.jit
def within(rows, cols, N, K, shift):
    """Return which elements of a tile lie in the matrix [N, K]."""
    if shift is None:
        return (rows < N)[:, None] & (cols < K)[None, :]
    else:
        return (rows < N)[:, None] & ((cols >= 0) & (cols < K))[None, :]


@triton.jit
def gathered(rows, rows_ptr, N):
    """Return the rows of the weight for ``rows`` [ROWS]: the int64 numbers at ``rows_ptr``, or ``rows`` without it."""
    if rows_ptr is None:
        return rows
    else:
        return tl.load(rows_ptr + rows, mask=rows < N, other=0)


@triton.jit
def offsets(rows, cols, stride_row, stride_col):
    """Return the offsets [R, C] of elements; rows and columns are int64, since a matrix may have over 2^31 elements."""
    return rows[:, None] * stride_row + cols[None, :] * stride_col


@triton.jit
def load(matrix_ptr, at, inside):
    """Return the elements at offsets ``at`` in fp32, and 0 where ``inside`` is False."""
    return tl.load(matrix_ptr + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_tile(pointers, inside):
    """Return the elements at ``pointers`` in their dtype, and 0 where ``inside`` is False; None counts as True."""
    if inside is None:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=inside, other=0)
