"""weight_grad_matmul: the gradients of weights and logits, from a matrix product whose result stays in registers.

The product is ``G_d = grad_d^T x_d`` for each draw; then ``dW = sum_d G_d z_d`` and ``dlogit = W sum_d G_d
dz_d/dlogit``. Only these two results of the weight's size are written, also with many draws.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import KLTerm, Logits, Mask

from . import tiles
from .estimators import pull, slope
from .matmul import precision, strides
from .pairs import masked_tile
from .philox import GROUP, load_key, singles, uniform_pairs
from .tiles import after, aligned, load, locate, offsets, within

WARPS = 8
STAGES = 3
COLS, WIDE_COLS = 64, 128
"""Columns of a tile. The wide tile reads a quarter fewer bytes of x and grad, but only the gradients of one draw in 16
bits leave enough registers for it, so that two programs share a multiprocessor."""
WIDE_REGISTERS = 128


@triton.jit
def outer_product(grad_ptr, x_ptr, grad_step, x_step, rows, cols, M, PRECISION: tl.constexpr):
    """Return ``grad^T x`` [R, C], summed over M tokens.

    Args:
        grad_ptr, x_ptr: pointers to the first tokens, [R, T] and [T, C].
        grad_step, x_step: the distance to the next T tokens.
        rows, cols: which rows [R] and columns [C] lie in the matrix.
    """
    m = tl.arange(0, x_ptr.shape[0])
    g = tl.zeros([grad_ptr.shape[0], x_ptr.shape[1]], tl.float32)
    for start in range(0, M, x_ptr.shape[0]):
        left = m < M - start
        grad = tl.load(grad_ptr, mask=rows[:, None] & left[None, :], other=0.0)
        x = tl.load(x_ptr, mask=left[:, None] & cols[None, :], other=0.0)
        g = tl.dot(grad, x, g, input_precision=PRECISION)
        grad_ptr += grad_step
        x_ptr += x_step
    return g


@triton.jit(do_not_specialize=["stream", "first_row", "first_group", "temperature", "draws", "M"])
def weight_grad_matmul_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    logits_ptr,
    dweight_ptr,
    dlogits_ptr,
    prior_ptr,
    kl_grad_ptr,
    prior_row,
    prior_col,
    seed_ptr,
    draw_ptr,
    stream: tl.int32,
    first_row,
    first_group,
    temperature,
    draws,
    M,
    N,
    K,
    grad_draw,
    grad_row,
    grad_col,
    x_draw,
    x_row,
    x_col,
    weight_row,
    weight_col,
    logits_row,
    logits_col,
    ESTIMATOR: tl.constexpr,
    SINGLE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    rows, cols, group = locate(tl.program_id(0), K, None, ROWS, COLS // GROUP)
    inside = within(rows, cols, N, K, None)
    at, logits_at = offsets(rows, cols, K, 1), offsets(rows, cols, logits_row, logits_col)
    k0, k1 = load_key(seed_ptr)
    m = tl.arange(0, TOKENS).to(tl.int64)
    grad_ptr += offsets(rows, m, grad_col, grad_row)
    x_ptr += offsets(m, cols, x_row, x_col)
    grad_step, x_step = tl.cast(grad_row, tl.int64) * TOKENS, tl.cast(x_row, tl.int64) * TOKENS
    if SINGLE:
        g = outer_product(grad_ptr, x_ptr, grad_step, x_step, rows < N, cols < K, M, PRECISION)
        logit = load(logits_ptr, logits_at, inside)
        u = uniform_pairs(
            after(rows, first_row), after(group, first_group), k0, k1, tl.load(draw_ptr), stream, COLS // GROUP
        )
        dz = g * slope(logit, singles(u), temperature, ESTIMATOR)
        if dweight_ptr is not None:
            dweight = masked_tile(g, logit, u, temperature, ESTIMATOR, dweight_ptr.dtype.element_ty)
    else:
        logit = load(logits_ptr, logits_at, inside)
        dweight = tl.zeros([ROWS, COLS], tl.float32)
        dz = tl.zeros([ROWS, COLS], tl.float32)
        for d in range(draws):
            g = outer_product(grad_ptr, x_ptr, grad_step, x_step, rows < N, cols < K, M, PRECISION)
            draw = tl.load(draw_ptr + d)
            u = uniform_pairs(after(rows, first_row), after(group, first_group), k0, k1, draw, stream, COLS // GROUP)
            if dweight_ptr is not None:
                dweight += masked_tile(g, logit, u, temperature, ESTIMATOR, tl.float32)
            if dlogits_ptr is not None:
                dz += g * slope(logit, singles(u), temperature, ESTIMATOR)
            grad_ptr += grad_draw
            x_ptr += x_draw

    if dweight_ptr is not None:
        tl.store(dweight_ptr + at, dweight.to(dweight_ptr.dtype.element_ty), mask=inside)
    if dlogits_ptr is not None:
        dlogit = dz * load(weight_ptr, offsets(rows, cols, weight_row, weight_col), inside)
        if prior_ptr is not None:
            dlogit += pull(logit, prior_ptr, kl_grad_ptr, offsets(rows, cols, prior_row, prior_col), inside)
        tl.store(dlogits_ptr + at, dlogit.to(dlogits_ptr.dtype.element_ty), mask=inside)


def weight_grad_matmul(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Logits,
    *,
    mask: Mask,
    dweight: Tensor | None,
    dlogits: Tensor | None,
    kl: KLTerm | None = None,
) -> None:
    """Write contiguous ``dweight`` and ``dlogits`` [N, K] (either may be None) from grad [D, M, N] and x [D, M, K].

    The gradient of ``kl`` is added to dlogits. ``mask.col`` must be a multiple of 64.
    """
    D, M, N = grad.shape
    K = x.shape[2]
    if not weight.numel():
        return
    rows, tokens = (64, 64) if x.element_size() == 2 else (32, 16)  # float32 needs more registers
    plain = D == 1 and kl is None and mask.estimator == "straight_through"
    regular = aligned(grad, x, weight, logits)
    wide = plain and regular and all(t.element_size() == 2 for t in (x, weight, logits))
    cols = WIDE_COLS if wide else COLS
    with torch.cuda.device_of(x):
        weight_grad_matmul_kernel[(triton.cdiv(N, rows) * triton.cdiv(K, cols),)](
            grad,
            x,
            weight,
            logits,
            dweight,
            dlogits,
            *tiles.kl_arguments(kl),
            *tiles.address(mask),
            mask.temperature,
            D,
            M,
            N,
            K,
            *strides(grad),
            *strides(x),
            *weight.stride(),
            *logits.stride(),
            ESTIMATOR=mask.estimator,
            SINGLE=D == 1,
            PRECISION=precision(x.dtype),
            ROWS=rows,
            COLS=cols,
            TOKENS=min(tokens, max(16, triton.next_power_of_2(M))),
            num_warps=WARPS,
            num_stages=STAGES if regular else 1,  # otherwise each element has its own address
            maxnreg=WIDE_REGISTERS if wide else None,
            enable_fp_fusion=False,
        )
