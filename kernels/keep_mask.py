"""keep_mask: the hard mask of a block of weights as booleans."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import Mask

from . import tiles
from .philox import load_key, uniforms
from .tiles import after, locate, offsets, within


@triton.jit(do_not_specialize=["stream", "first_row", "first_group"])
def keep_mask_kernel(
    threshold_ptr,
    out_ptr,
    seed_ptr,
    draw_ptr,
    stream: tl.int32,
    first_row,
    first_group,
    shift,
    N,
    K,
    stride_row,
    stride_col,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    rows, cols, group = locate(tl.program_id(0), K, shift, ROWS, GROUPS)
    k0, k1 = load_key(seed_ptr)
    u = uniforms(after(rows, first_row), after(group, first_group), k0, k1, tl.load(draw_ptr), stream, GROUPS)
    inside = within(rows, cols, N, K, shift)
    threshold = tl.load(threshold_ptr + offsets(rows, cols, stride_row, stride_col), mask=inside, other=0)
    keep = (u & 0x7FFF) < threshold.to(tl.uint32)
    tl.store(out_ptr + offsets(rows, cols, K, 1), keep.to(tl.uint8), mask=inside)


def keep_mask(threshold: Tensor, *, mask: Mask) -> Tensor:
    """Return which weights one draw keeps, bool [N, K], from uint16 thresholds [N, K] of any strides."""
    N, K = threshold.shape
    out = torch.empty(N, K, dtype=torch.bool, device=threshold.device)
    if out.numel():
        with torch.cuda.device_of(threshold):
            keep_mask_kernel[tiles.grid(mask, N, K)](
                threshold,
                out.view(torch.uint8),
                *tiles.address(mask),
                tiles.shift(mask),
                N,
                K,
                *threshold.stride(),
                ROWS=tiles.ROWS,
                **tiles.LAUNCH,
            )
    return out
