"""prepass: the masked weights ``z * W`` of some draws as a temporary tensor in the compute dtype, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import Logits, Mask, Rows

from . import tiles
from .estimators import masked
from .philox import load_key, uniforms
from .tiles import after, dense_offsets, gathered, load, locate, weight_offsets, within


@triton.jit(do_not_specialize=["stream", "first_row", "first_group", "temperature", "draws"])
def prepass_kernel(
    weight_ptr,
    logits_ptr,
    out_ptr,
    rows_ptr,
    seed_ptr,
    draw_ptr,
    stream: tl.int32,
    first_row,
    first_group,
    shift,
    temperature,
    draws,
    N,
    K,
    weight_row,
    weight_col,
    logits_row,
    logits_col,
    POSITIONS: tl.constexpr,
    ESTIMATOR: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    # Neighbouring programs share a tile: its weights are read from memory once, then from the cache.
    rows, cols, group = locate(tl.program_id(0) // draws, K, shift, ROWS, GROUPS)
    inside = within(rows, cols, N, K, shift)
    row = gathered(rows, rows_ptr, N)
    w = load(weight_ptr, weight_offsets(row, cols, weight_row, weight_col, K, POSITIONS), inside)
    logit = load(logits_ptr, weight_offsets(row, cols, logits_row, logits_col, K, POSITIONS), inside)
    k0, k1 = load_key(seed_ptr)
    d = tl.program_id(0) % draws
    draw = tl.load(draw_ptr + d)
    u = uniforms(after(row, first_row), after(group, first_group), k0, k1, draw, stream, GROUPS)
    z = masked(w, logit, u, temperature, ESTIMATOR)
    out_ptr += d.to(tl.int64) * N * K
    tl.store(out_ptr + dense_offsets(rows, cols, K, POSITIONS), z.to(out_ptr.dtype.element_ty), mask=inside)


def mask_weight(weight: Tensor, logits: Logits, *, mask: Mask, dtype: torch.dtype, rows: Rows = None) -> Tensor:
    """Return ``z * weight`` in ``dtype``, as :class:`stochprune.materialised.MaskWeight`."""
    weight = tiles.readable(weight)
    N, K = len(weight) if rows is None else len(rows), weight.shape[1:].numel()
    out = torch.empty(len(mask.draw), N, K, dtype=dtype, device=weight.device)
    height = tiles.height(mask, weight, logits, out)
    if out.numel():
        with torch.cuda.device_of(weight):
            prepass_kernel[tiles.grid(mask, N, K, height, draws=len(out))](
                weight,
                logits,
                out,
                rows,
                *tiles.address(mask),
                tiles.shift(mask),
                mask.temperature,
                len(out),
                N,
                K,
                *weight.stride()[:2],
                *logits.stride()[:2],
                POSITIONS=tiles.positions(weight),
                ESTIMATOR=mask.estimator,
                ROWS=height,
                **tiles.LAUNCH,
            )
    return out if weight.dim() == 2 else out.view(len(out), N, -1, weight.shape[1]).mT
