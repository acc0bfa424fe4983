"""What the kernels that multiply matrices share: tile shapes and the precision of float32."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .estimators import INTERPRETED
from .tiles import aligned

STEP = 64
"""Length of one step along the reduction: one group of columns."""


class Tile(NamedTuple):
    """A tile of the transposed result: ``out`` features of ``tokens`` tokens."""

    out: int
    tokens: int
    warps: int
    stages: int

    @classmethod
    def fit(cls, x: Tensor, *weights: Tensor) -> Tile:
        """The tile for x [D, M, K]: wide, since a mask is drawn once a tile, but no wider than the registers allow.

        Args:
            weights: the matrices that are read beside x.
        """
        tiles = usable(x.dtype, x.device, aligned(x, *weights))
        return next((tile for tile in tiles if x.shape[1] <= tile.tokens), tiles[-1])


def usable(dtype: torch.dtype, device: torch.device, aligned: bool = True) -> tuple[Tile, ...]:
    """The device's tiles for one dtype, the widest last."""
    row = capability(device)
    if aligned:
        return (HALF if dtype.itemsize == 2 else FLOAT)[row]
    return ODD_HALF[row] if dtype.itemsize == 2 else ODD_HALF[row][:1]


# By the major compute capability; the compile table checks them for spills. float32 takes more registers and memory.
HALF = {
    8: (Tile(64, 16, 4, 2), Tile(64, 32, 4, 2), Tile(64, 64, 8, 3)),
    9: (Tile(64, 16, 4, 4), Tile(64, 32, 4, 4), Tile(64, 64, 4, 3), Tile(128, 128, 8, 3)),
}
FLOAT = {8: (Tile(64, 16, 8, 2), Tile(64, 32, 4, 2)), 9: HALF[9][:2]}
# For matrices that are not aligned: each element takes registers for an address of its own.
ODD_HALF = {
    8: (Tile(64, 16, 8, 2), Tile(64, 32, 8, 1)),
    9: (Tile(64, 16, 8, 2), Tile(64, 32, 8, 1), Tile(64, 64, 8, 1)),
}


def capability(device: torch.device) -> int:
    """Which row of the tile tables serves this device: 8 before Hopper, 9 from Hopper on."""
    if device.type != "cuda":
        return 9
    return 9 if torch.cuda.get_device_capability(device)[0] >= 9 else 8


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied, after torch's switch for matrix products: in tf32, or in three tf32 products.

    Three keep 22 of the 24 bits. "ieee" would leave the tensor cores, and on sm_100 Triton 3.7.1 takes it for tf32.
    """
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "tf32x3"


def strides(x: Tensor) -> tuple[int, int, int]:
    """Strides of x [D, R, C]; 0 to the next draw if there is none: R * C may or may not be a multiple of 16, and Triton
    would compile for both."""
    draw, row, col = x.stride()
    return (draw if len(x) > 1 else 0), row, col


@triton.jit
def settled(acc):
    """``acc`` [R, C], float32, once the matrix instructions that form it have ended.

    On Hopper these run on after ``tl.dot``, and a left operand that was computed lies in registers, which they still
    read. Triton 3.6 and 3.7 let the loop go round without a wait, and the next step writes these registers: wrong sums
    without a sign. The empty assembly reads the accumulator, so the compiler waits before it. ``bench.sass`` finds
    such races in the machine code, and the gates of the compile table count them.
    """
    if INTERPRETED:
        return acc
    else:
        return tl.inline_asm_elementwise("", "=f,0", [acc], dtype=tl.float32, is_pure=False, pack=1)
