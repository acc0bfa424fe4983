"""mask_backward: the gradients of weights and logits from G = dL/d(z * W), in one elementwise pass.

``dW = G z`` and ``dlogit = G W dz/dlogit``; dz/dlogit is the slope of :mod:`.estimators`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import KLTerm, Logits, Mask, Rows
from stochprune.materialised import Gradients

from . import tiles
from .estimators import masked, pull, slope
from .philox import load_key, uniforms
from .tiles import after, dense_offsets, gathered, load, locate, offsets, weight_offsets, within


@triton.jit(do_not_specialize=["stream", "first_row", "first_group", "temperature"])
def mask_backward_kernel(
    grad_ptr,
    weight_ptr,
    logits_ptr,
    dweight_ptr,
    dlogits_ptr,
    prior_ptr,
    kl_grad_ptr,
    prior_row,
    prior_col,
    rows_ptr,
    seed_ptr,
    draw_ptr,
    stream: tl.int32,
    first_row,
    first_group,
    shift,
    temperature,
    N,
    K,
    weight_row,
    weight_col,
    logits_row,
    logits_col,
    POSITIONS: tl.constexpr,
    ESTIMATOR: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    rows, cols, group = locate(tl.program_id(0), K, shift, ROWS, GROUPS)
    inside = within(rows, cols, N, K, shift)
    at = dense_offsets(rows, cols, K, POSITIONS)
    g = load(grad_ptr, at, inside)
    row = gathered(rows, rows_ptr, N)
    logit = load(logits_ptr, weight_offsets(row, cols, logits_row, logits_col, K, POSITIONS), inside)
    k0, k1 = load_key(seed_ptr)
    # The compiler removes this line where nothing reads u.
    u = uniforms(after(row, first_row), after(group, first_group), k0, k1, tl.load(draw_ptr), stream, GROUPS)
    if dlogits_ptr is not None:
        w = load(weight_ptr, weight_offsets(row, cols, weight_row, weight_col, K, POSITIONS), inside)
        dlogit = g * w * slope(logit, u, temperature, ESTIMATOR)
        if prior_ptr is not None:
            dlogit += pull(logit, prior_ptr, kl_grad_ptr, offsets(row, cols, prior_row, prior_col), inside)
        if ADD:
            dlogit += load(dlogits_ptr, at, inside)
        tl.store(dlogits_ptr + at, dlogit.to(dlogits_ptr.dtype.element_ty), mask=inside)
    if dweight_ptr is not None:
        dweight = masked(g, logit, u, temperature, ESTIMATOR)
        if ADD:
            dweight += load(dweight_ptr, at, inside)
        tl.store(dweight_ptr + at, dweight.to(dweight_ptr.dtype.element_ty), mask=inside)


def mask_backward(
    grad: Tensor, weight: Tensor, logits: Logits, *, mask: Mask, to: Gradients, rows: Rows, kl: KLTerm | None
) -> None:
    """Write dweight and dlogits, as :class:`stochprune.materialised.MaskBackward`."""
    N, K = len(grad), grad.shape[1:].numel()
    if not grad.numel():
        return
    weight = tiles.readable(weight)
    height = tiles.height(mask, weight, logits, grad)
    with torch.cuda.device_of(weight):
        mask_backward_kernel[tiles.grid(mask, N, K, height)](
            grad,
            weight,
            logits,
            to.dweight,
            to.dlogits,
            *tiles.kl_arguments(kl),
            rows,
            *tiles.address(mask),
            tiles.shift(mask),
            mask.temperature,
            N,
            K,
            *weight.stride()[:2],
            *logits.stride()[:2],
            POSITIONS=tiles.positions(weight),
            ESTIMATOR=mask.estimator,
            ADD=to.add,
            ROWS=height,
            **tiles.LAUNCH,
        )
