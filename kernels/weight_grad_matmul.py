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
from .estimators import masked, pull, slope
from .matmul import precision, strides
from .philox import GROUP, load_key, uniforms
from .tiles import after, aligned, load, locate, offsets, within

COLS = 64
WARPS = 8
STAGES = 3


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
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    rows, cols, group = locate(tl.program_id(0), K, None, ROWS, COLS // GROUP)
    inside = within(rows, cols, N, K, None)
    logit = load(logits_ptr, offsets(rows, cols, logits_row, logits_col), inside)
    k0, k1 = load_key(seed_ptr)
    dweight = tl.zeros([ROWS, COLS], tl.float32)
    dlogit = tl.zeros([ROWS, COLS], tl.float32)
    for d in range(draws):
        g = tl.zeros([ROWS, COLS], tl.float32)
        for start in range(0, M, TOKENS):
            m = start + tl.arange(0, TOKENS).to(tl.int64)
            grad = tl.load(
                grad_ptr + offsets(rows, m, grad_col, grad_row), mask=(rows < N)[:, None] & (m < M)[None, :], other=0.0
            )
            x = tl.load(x_ptr + offsets(m, cols, x_row, x_col), mask=(m < M)[:, None] & (cols < K)[None, :], other=0.0)
            g = tl.dot(grad, x, g, input_precision=PRECISION)
        draw = tl.load(draw_ptr + d)
        u = uniforms(after(rows, first_row), after(group, first_group), k0, k1, draw, stream, COLS // GROUP)
        if dweight_ptr is not None:
            dweight += masked(g, logit, u, temperature, ESTIMATOR)
        if dlogits_ptr is not None:
            dlogit += g * slope(logit, u, temperature, ESTIMATOR)
        grad_ptr += grad_draw
        x_ptr += x_draw

    at = offsets(rows, cols, K, 1)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + at, dweight.to(dweight_ptr.dtype.element_ty), mask=inside)
    if dlogits_ptr is not None:
        w = load(weight_ptr, offsets(rows, cols, weight_row, weight_col), inside)
        dlogit *= w
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
    with torch.cuda.device_of(x):
        weight_grad_matmul_kernel[(triton.cdiv(N, rows) * triton.cdiv(K, COLS),)](
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
            PRECISION=precision(x.dtype),
            ROWS=rows,
            COLS=COLS,
            TOKENS=min(tokens, max(16, triton.next_power_of_2(M))),
            num_warps=WARPS,
            num_stages=STAGES if aligned(grad, x, weight, logits) else 1,  # otherwise each element has its own address
            enable_fp_fusion=False,
        )
