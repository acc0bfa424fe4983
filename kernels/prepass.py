"""prepass: the masked weights ``z * W`` of some draws as a transient tensor in the compute dtype, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.products import Mask

from . import tiles
from .estimators import masked
from .philox import load_key, uniforms
from .tiles import gathered, locate, offsets


@triton.jit(do_not_specialize=["stream", "temperature", "draws"])
def prepass_kernel(
    weight_ptr,
    logits_ptr,
    out_ptr,
    rows_ptr,
    seed_ptr,
    draw_ptr,
    stream: tl.int32,
    temperature,
    draws,
    N,
    K,
    weight_row,
    weight_col,
    logits_row,
    logits_col,
    ESTIMATOR: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    # Neighbours share a tile: its weights come from memory once, then from the cache.
    rows, cols, group = locate(tl.program_id(0) // draws, K, ROWS, GROUPS)
    inside = (rows < N)[:, None] & (cols < K)[None, :]
    row = gathered(rows, rows_ptr, N)
    w = tl.load(weight_ptr + offsets(row, cols, weight_row, weight_col), mask=inside, other=0.0).to(tl.float32)
    logit = tl.load(logits_ptr + offsets(row, cols, logits_row, logits_col), mask=inside, other=0.0).to(tl.float32)
    k0, k1 = load_key(seed_ptr)
    d = tl.program_id(0) % draws
    u = uniforms(row, group, k0, k1, tl.load(draw_ptr + d), stream, GROUPS)
    z = masked(w, logit, u, temperature, ESTIMATOR)
    out_ptr += d.to(tl.int64) * N * K
    tl.store(out_ptr + offsets(rows, cols, K, 1), z.to(out_ptr.dtype.element_ty), mask=inside)


def mask_weight(weight: Tensor, logits: Tensor, mask: Mask, dtype: torch.dtype, rows: Tensor | None = None) -> Tensor:
    """``z * weight`` [D, N, K] in ``dtype``, contiguous, for each draw of ``mask``; of ``rows`` if given."""
    N, K = len(weight) if rows is None else len(rows), weight.shape[1]
    out = torch.empty(len(mask.draw), N, K, dtype=dtype, device=weight.device)
    height = tiles.height(weight, logits, out)
    if out.numel():
        with torch.cuda.device_of(weight):
            prepass_kernel[(tiles.count(N, K, height) * len(out),)](
                weight,
                logits,
                out,
                rows,
                mask.seed,
                mask.draw,
                mask.stream,
                mask.temperature,
                len(out),
                N,
                K,
                *weight.stride(),
                *logits.stride(),
                ESTIMATOR=mask.estimator,
                ROWS=height,
                GROUPS=tiles.GROUPS,
                num_warps=tiles.WARPS,
                enable_fp_fusion=False,
            )
    return out
