"""mask_backward: the gradients of weights and logits from G = dL/d(z * W), in one elementwise pass.

``dW = G z`` and ``dlogit = G W dz/dlogit``; dz/dlogit is the slope of :mod:`.estimators`. The same pass can write the
masked weight ``z W``, with which the gradient of x is computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import KLTerm, Logits, Mask, Rows
from stochprune.materialised import Gradients

from . import tiles
from .estimators import pull, slope
from .pairs import masked_tile
from .philox import load_key, singles, uniform_pairs
from .tiles import after, dense_offsets, gathered, load, locate, offsets, weight_offsets, within

ROWS = tiles.ROWS // 2
"""Rows of a tile. The pass has up to seven matrices; with more rows, their registers would leave room for one program
on a multiprocessor."""


@triton.jit(do_not_specialize=["stream", "first_row", "first_group", "temperature"])
def mask_backward_kernel(
    grad_ptr,
    weight_ptr,
    logits_ptr,
    dweight_ptr,
    dlogits_ptr,
    masked_ptr,
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
    u = uniform_pairs(after(row, first_row), after(group, first_group), k0, k1, tl.load(draw_ptr), stream, GROUPS)
    if dlogits_ptr is not None or masked_ptr is not None:
        w = load(weight_ptr, weight_offsets(row, cols, weight_row, weight_col, K, POSITIONS), inside)
    if masked_ptr is not None:
        z = masked_tile(w, logit, u, temperature, ESTIMATOR, masked_ptr.dtype.element_ty)
        tl.store(masked_ptr + at, z, mask=inside)
    if dlogits_ptr is not None:
        dlogit = g * w * slope(logit, singles(u), temperature, ESTIMATOR)
        if prior_ptr is not None:
            dlogit += pull(logit, prior_ptr, kl_grad_ptr, offsets(row, cols, prior_row, prior_col), inside)
        if ADD:
            dlogit += load(dlogits_ptr, at, inside)
        tl.store(dlogits_ptr + at, dlogit.to(dlogits_ptr.dtype.element_ty), mask=inside)
    if dweight_ptr is not None:
        dweight = masked_tile(g, logit, u, temperature, ESTIMATOR, dweight_ptr.dtype.element_ty)
        if ADD:
            dweight += load(dweight_ptr, at, inside)
        tl.store(dweight_ptr + at, dweight, mask=inside)


def mask_backward(
    grad: Tensor, weight: Tensor, logits: Logits, *, mask: Mask, to: Gradients, rows: Rows, kl: KLTerm | None
) -> None:
    """Write the gradients, as :class:`stochprune.materialised.MaskBackward`."""
    N, K = len(grad), grad.shape[1:].numel()
    if not grad.numel():
        return
    weight = tiles.readable(weight)
    with torch.cuda.device_of(weight):
        mask_backward_kernel[tiles.grid(mask, N, K, ROWS)](
            grad,
            weight,
            logits,
            to.dweight,
            to.dlogits,
            to.masked,
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
            ROWS=ROWS,
            **tiles.LAUNCH,
        )
