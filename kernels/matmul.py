"""Tile shapes and the precision of float32, for all kernels that multiply matrices."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .estimators import INTERPRETED
from .tiles import aligned

STEP = 64
"""Length of one step along the reduction: the columns of one group."""


class Tile(NamedTuple):
    """A tile of the transposed result: ``out`` features of ``tokens`` tokens."""

    out: int
    tokens: int
    warps: int
    stages: int  # at most
    resident: int  # programs that a multiprocessor runs at a time: the compile table checks registers and memory

    @classmethod
    def fit(cls, x: Tensor, *weights: Tensor, thresholds: bool = False) -> Tile:
        """Return the tile for x [D, M, K]: wide, since each tile samples its mask once, but without spilled registers.

        Args:
            weights: the other matrices that the kernel reads.
            thresholds: the kernel reads packed thresholds, which needs fewer registers.
        """
        return tile_for(x.shape[1], usable(x.dtype, x.device, aligned(x, *weights), thresholds))


def tile_for(tokens: int, tiles: tuple[Tile, ...]) -> Tile:
    """Return the narrowest of the tiles that holds all tokens, or the widest."""
    return next((tile for tile in tiles if tokens <= tile.tokens), tiles[-1])


def usable(
    dtype: torch.dtype, device: torch.device, aligned: bool = True, thresholds: bool = False
) -> tuple[Tile, ...]:
    """Return the device's tiles for one dtype, the widest last."""
    row = capability(device)
    if not aligned:
        return ODD_HALF[row] if dtype.itemsize == 2 else ODD_HALF[row][:1]
    if dtype.itemsize == 2:
        return HALF[row] + (WIDE[row] if thresholds else ())
    return FLOAT[row]


# The keys are major compute capabilities. The compile table checks the tiles for spills. float32 needs more registers
# and more memory.
HALF = {
    8: (Tile(64, 16, 4, 2, 1), Tile(64, 32, 4, 2, 1), Tile(64, 64, 8, 3, 1)),
    9: (Tile(64, 16, 4, 4, 3), Tile(64, 32, 4, 4, 3), Tile(64, 64, 4, 4, 3), Tile(128, 128, 8, 4, 1)),
}
WIDE: dict[int, tuple[Tile, ...]] = {8: (), 9: (Tile(128, 256, 8, 3, 1),)}
FLOAT = {
    8: (Tile(64, 16, 8, 2, 1), Tile(64, 32, 4, 2, 1)),
    9: (Tile(64, 16, 4, 4, 2), Tile(64, 32, 4, 4, 2)),
}
# For matrices that are not aligned: each element needs registers for its own address.
ODD_HALF = {
    8: (Tile(64, 16, 8, 2, 1), Tile(64, 32, 8, 1, 1)),
    9: (Tile(64, 16, 8, 2, 1), Tile(64, 32, 8, 1, 1), Tile(64, 64, 8, 1, 1)),
}
SHARED = {8: 99 << 10, 9: 227 << 10}
"""Bytes of a multiprocessor's memory for its programs; of those with capability 8 the smallest."""
RESERVED = 1 << 10
"""Bytes of it that the system takes for each program."""


def stages(tile: Tile, weight: int, x: int, device: torch.device) -> int:
    """Return the number of steps that the main loop loads ahead: as many as leave room for the resident programs.

    Triton keeps one buffer fewer for matrices that the loop itself reads than for x, which the tensor cores read.

    Args:
        weight: bytes for each weight of a tile, with its logit or threshold.
        x: bytes of an element of x.
    """
    ours, theirs = tile.out * STEP * weight, tile.tokens * STEP * x
    transposed = tile.out * STEP * x
    room = SHARED[capability(device)] // tile.resident - RESERVED - transposed
    return next((n for n in range(tile.stages, 2, -1) if (n - 1) * ours + n * theirs <= room), min(tile.stages, 2))


def capability(device: torch.device) -> int:
    """Return the key of the tile tables for this device: 8 before Hopper, 9 from Hopper on."""
    if device.type != "cuda":
        return 9
    return 9 if torch.cuda.get_device_capability(device)[0] >= 9 else 8


def precision(dtype: torch.dtype) -> str:
    """Return how float32 is multiplied, by torch's setting for matrix products: in tf32, or in three tf32 products.

    Three products keep 22 of the 24 bits. "ieee" would not use the tensor cores, and on sm_100 Triton 3.7.1 treats it
    as tf32.
    """
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "tf32x3"


def strides(x: Tensor) -> tuple[int, int, int]:
    """Return the strides of x [D, R, C], with 0 for the first if D is 1.

    Otherwise Triton would compile one kernel for R * C that is a multiple of 16, and another for R * C that is not.
    """
    draw, row, col = x.stride()
    return (draw if len(x) > 1 else 0), row, col


@triton.jit
def settled(acc):
    """Return ``acc`` [R, C], float32, after the matrix instructions that compute it have ended.

    On Hopper these instructions still run after ``tl.dot``. If the left operand was computed, it is in registers, which
    the instructions still read. Triton 3.6 and 3.7 start the next step of the loop without a wait, and this step writes
    to these registers: the sums are wrong, and no error is raised. The empty assembly reads the accumulator, so the
    compiler waits before it. ``bench.sass`` finds such races in the machine code; the compile table counts them.
    """
    if INTERPRETED:
        return acc
    else:
        return tl.inline_asm_elementwise("", "=f,0", [acc], dtype=tl.float32, is_pure=False, pack=1)


@triton.jit
def in_layout_of(acc, a):
    """Return ``a`` [R, C], float32, with its elements in the same threads and registers as those of ``acc`` [R, C].

    Triton chooses the layout of a tile by the values that it depends on. Without this dependence, it computes the mask
    twice: in the layout of the loads and in the layout of the accumulator. The empty assembly has no instructions.
    """
    if INTERPRETED:
        return a
    else:
        return tl.inline_asm_elementwise("", "=f,0,f", [a, acc], dtype=tl.float32, is_pure=True, pack=1)
