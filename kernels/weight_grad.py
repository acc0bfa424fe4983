"""weight_grad: from G = dL/d(z * W) to the gradients of weights and logits, in one elementwise pass.

``dW = G z`` and ``dlogit = G W dz/dlogit``, with the slope of :mod:`.estimators`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.products import Divergence, Mask

from . import tiles
from .estimators import masked, pull, slope
from .philox import load_key, uniforms
from .tiles import gathered, locate, offsets


@triton.jit(do_not_specialize=["stream", "temperature"])
def weight_grad_kernel(
    grad_ptr,
    weight_ptr,
    logits_ptr,
    dweight_ptr,
    dlogits_ptr,
    prior_ptr,
    kl_grad_ptr,
    rows_ptr,
    seed_ptr,
    draw_ptr,
    stream: tl.int32,
    temperature,
    N,
    K,
    weight_row,
    weight_col,
    logits_row,
    logits_col,
    prior_row,
    prior_col,
    ESTIMATOR: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    rows, cols, group = locate(tl.program_id(0), K, ROWS, GROUPS)
    inside = (rows < N)[:, None] & (cols < K)[None, :]
    at = offsets(rows, cols, K, 1)
    g = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    row = gathered(rows, rows_ptr, N)
    logit = tl.load(logits_ptr + offsets(row, cols, logits_row, logits_col), mask=inside, other=0.0).to(tl.float32)
    k0, k1 = load_key(seed_ptr)
    u = uniforms(row, group, k0, k1, tl.load(draw_ptr), stream, GROUPS)  # dead code, and free, where nothing reads it
    if dlogits_ptr is not None:
        w = tl.load(weight_ptr + offsets(row, cols, weight_row, weight_col), mask=inside, other=0.0).to(tl.float32)
        dlogit = g * w * slope(logit, u, temperature, ESTIMATOR)
        if prior_ptr is not None:
            dlogit += pull(logit, prior_ptr, kl_grad_ptr, offsets(row, cols, prior_row, prior_col), inside)
        if ADD:
            dlogit += tl.load(dlogits_ptr + at, mask=inside, other=0.0)
        tl.store(dlogits_ptr + at, dlogit.to(dlogits_ptr.dtype.element_ty), mask=inside)
    if dweight_ptr is not None:
        dweight = masked(g, logit, u, temperature, ESTIMATOR)
        if ADD:
            dweight += tl.load(dweight_ptr + at, mask=inside, other=0.0)
        tl.store(dweight_ptr + at, dweight.to(dweight_ptr.dtype.element_ty), mask=inside)


def weight_grad(
    grad: Tensor,
    weight: Tensor,
    logits: Tensor,
    mask: Mask,
    dweight: Tensor | None,
    dlogits: Tensor | None,
    add: bool = False,
    rows: Tensor | None = None,
    divergence: Divergence | None = None,
) -> None:
    """Write (or add) to contiguous ``dweight`` and ``dlogits`` [N, K]; either may be None, or ``grad`` itself.

    Args:
        grad: contiguous [N, K], dL/d(z * W) under the first draw of ``mask``.
        add: add to what the results hold, which must then be float32.
        rows: int64 [N], the rows of the weight that grad and the results speak of; default all.
        divergence: adds its gradient to dlogits.
    """
    N, K = grad.shape
    if not grad.numel():
        return
    height = tiles.height(grad, weight, logits)
    *divergence_pointers, prior_row, prior_col = Divergence.arguments(divergence)
    with torch.cuda.device_of(weight):
        weight_grad_kernel[(tiles.count(N, K, height),)](
            grad,
            weight,
            logits,
            dweight,
            dlogits,
            *divergence_pointers,
            rows,
            mask.seed,
            mask.draw,
            mask.stream,
            mask.temperature,
            N,
            K,
            *weight.stride(),
            *logits.stride(),
            prior_row,
            prior_col,
            ESTIMATOR=mask.estimator,
            ADD=add,
            ROWS=height,
            GROUPS=tiles.GROUPS,
            num_warps=tiles.WARPS,
            enable_fp_fusion=False,
        )
