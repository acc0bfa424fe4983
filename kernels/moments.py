"""Mean and variance of random weights, and their gradients, one pass each.

A weight is kept with probability q; a kept weight is N(w, softplus(rho)^2).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import Logits

from . import tiles
from .estimators import sigmoid, sigmoid_slope
from .gaussian import softplus
from .tiles import load, locate, offsets, within


@triton.jit
def _random(weight_ptr, logits_ptr, rho_ptr, rows, cols, inside, w_row, w_col, l_row, l_col, r_row, r_col):
    """Return w, q, q (1 - q), sigma and sigmoid(rho) of a tile; q is 1 without logits, sigma is 0 without rho."""
    w = load(weight_ptr, offsets(rows, cols, w_row, w_col), inside)
    q, slope, sigma, growth = tl.full(w.shape, 1.0, tl.float32), w * 0.0, w * 0.0, w * 0.0
    if logits_ptr is not None:
        logit = load(logits_ptr, offsets(rows, cols, l_row, l_col), inside)
        q, slope = sigmoid(logit), sigmoid_slope(logit)
    if rho_ptr is not None:
        rho = load(rho_ptr, offsets(rows, cols, r_row, r_col), inside)
        sigma, growth = softplus(rho), sigmoid(rho)
    return w, q, slope, sigma, growth


@triton.jit
def moments_kernel(
    weight_ptr,
    logits_ptr,
    rho_ptr,
    mean_ptr,
    variance_ptr,
    N,
    K,
    w_row,
    w_col,
    l_row,
    l_col,
    r_row,
    r_col,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    rows, cols, _ = locate(tl.program_id(0), K, None, ROWS, GROUPS)
    inside = within(rows, cols, N, K, None)
    w, q, slope, sigma, _ = _random(
        weight_ptr, logits_ptr, rho_ptr, rows, cols, inside, w_row, w_col, l_row, l_col, r_row, r_col
    )
    at = offsets(rows, cols, K, 1)
    tl.store(mean_ptr + at, (q * w).to(mean_ptr.dtype.element_ty), mask=inside)
    variance = slope * w * w + q * sigma * sigma
    tl.store(variance_ptr + at, variance.to(variance_ptr.dtype.element_ty), mask=inside)


@triton.jit
def moments_grad_kernel(
    dmean_ptr,
    dvariance_ptr,
    weight_ptr,
    logits_ptr,
    rho_ptr,
    dweight_ptr,
    dlogits_ptr,
    drho_ptr,
    N,
    K,
    w_row,
    w_col,
    l_row,
    l_col,
    r_row,
    r_col,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    rows, cols, _ = locate(tl.program_id(0), K, None, ROWS, GROUPS)
    inside = within(rows, cols, N, K, None)
    w, q, slope, sigma, growth = _random(
        weight_ptr, logits_ptr, rho_ptr, rows, cols, inside, w_row, w_col, l_row, l_col, r_row, r_col
    )
    at = offsets(rows, cols, K, 1)
    dm = load(dmean_ptr, at, inside)
    dv = load(dvariance_ptr, at, inside)
    tl.store(dweight_ptr + at, (dm * q + dv * slope * w * 2).to(dweight_ptr.dtype.element_ty), mask=inside)
    if dlogits_ptr is not None:
        dlogit = (dm * w + dv * ((1 - 2 * q) * w * w + sigma * sigma)) * slope
        tl.store(dlogits_ptr + at, dlogit.to(dlogits_ptr.dtype.element_ty), mask=inside)
    if drho_ptr is not None:
        tl.store(drho_ptr + at, (dv * q * sigma * growth * 2).to(drho_ptr.dtype.element_ty), mask=inside)


ROWS = 32
"""Rows of a tile: half as many as usual, because five inputs and three results need registers."""


def _strides(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(s for t in tensors for s in ((0, 0) if t is None else t.stride()))


def moments(weight: Tensor, logits: Logits | None, rho: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return mean and variance [N, K] in ``dtype``; the inputs [N, K] may have any strides."""
    mean, variance = (torch.empty(weight.shape, dtype=dtype, device=weight.device) for _ in range(2))
    if mean.numel():
        with torch.cuda.device_of(weight):
            moments_kernel[(tiles.count(*weight.shape, ROWS),)](
                weight,
                logits,
                rho,
                mean,
                variance,
                *weight.shape,
                *_strides(weight, logits, rho),
                ROWS=ROWS,
                **tiles.LAUNCH,
            )
    return mean, variance


def moments_grad(
    dmean: Tensor, dvariance: Tensor, weight: Tensor, logits: Logits | None, rho: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return dweight, dlogits and drho [N, K] (None without the input) from the gradients of mean and variance."""
    dweight, dlogits, drho = (
        None if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (weight, logits, rho)
    )
    if weight.numel():
        with torch.cuda.device_of(weight):
            moments_grad_kernel[(tiles.count(*weight.shape, ROWS),)](
                dmean.contiguous(),
                dvariance.contiguous(),
                weight,
                logits,
                rho,
                dweight,
                dlogits,
                drho,
                *weight.shape,
                *_strides(weight, logits, rho),
                ROWS=ROWS,
                **tiles.LAUNCH,
            )
    return dweight, dlogits, drho
