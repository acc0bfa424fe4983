"""keep_mask: the hard mask of a block of weights, written out as booleans."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .philox import GROUP, load_key, uniforms
from .tiles import locate, offsets


@triton.jit(do_not_specialize=["stream", "row_offset", "first_group"])
def keep_mask_kernel(
    threshold_ptr,
    out_ptr,
    seed_ptr,
    draw_ptr,
    stream: tl.int32,
    row_offset: tl.int64,
    first_group: tl.int64,
    shift,
    N,
    K,
    stride_row,
    stride_col,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    rows, cols, group = locate(tl.program_id(0), K + shift, ROWS, GROUPS)
    k0, k1 = load_key(seed_ptr)
    u = uniforms(rows + row_offset, first_group + group, k0, k1, tl.load(draw_ptr), stream, GROUPS)
    cols -= shift
    inside = (rows < N)[:, None] & ((cols >= 0) & (cols < K))[None, :]
    threshold = tl.load(threshold_ptr + offsets(rows, cols, stride_row, stride_col), mask=inside, other=0)
    keep = (u & 0x7FFF) < threshold.to(tl.uint32)
    tl.store(out_ptr + offsets(rows, cols, K, 1), keep.to(tl.uint8), mask=inside)


def keep_mask(threshold: Tensor, seed: Tensor, draw: Tensor, stream: int, row_offset: int, col_offset: int) -> Tensor:
    """bool [N, K]: which weights are kept under uint16 thresholds [N, K] of any strides."""
    N, K = threshold.shape
    out = torch.empty(N, K, dtype=torch.bool, device=threshold.device)
    shift = col_offset % GROUP.value  # the tiles start at a whole group
    if out.numel():
        with torch.cuda.device_of(threshold):
            keep_mask_kernel[(tiles.count(N, K + shift),)](
                threshold,
                out.view(torch.uint8),
                seed,
                draw,
                stream,
                row_offset,
                col_offset // GROUP.value,
                shift,
                N,
                K,
                threshold.stride(0),
                threshold.stride(1),
                ROWS=tiles.ROWS,
                GROUPS=tiles.GROUPS,
                num_warps=tiles.WARPS,
            )
    return out
