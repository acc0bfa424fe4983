"""Gaussian weights ``mu + softplus(rho) e`` and their gradient, one launch each; e are the contract's normals."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import Mask

from . import tiles
from .estimators import sigmoid
from .normal import logarithm, normals
from .philox import load_key
from .tiles import after, load, locate, offsets, within


@triton.jit
def softplus(x):
    """Return ln(1 + exp(x)) in fp32; the last term adds again what the sum 1 + exp(-|x|) rounds away."""
    e = tl.exp(-tl.abs(x))
    total = 1.0 + e
    return tl.maximum(x, 0.0) + (logarithm(total) + (e - (total - 1.0)) / total)


@triton.jit(do_not_specialize=["stream", "first_row", "first_group", "draws"])
def gaussian_kernel(
    mu_ptr,
    rho_ptr,
    out_ptr,
    seed_ptr,
    draw_ptr,
    stream: tl.int32,
    first_row,
    first_group,
    shift,
    draws,
    N,
    K,
    mu_row,
    mu_col,
    rho_row,
    rho_col,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    # Neighbouring programs share a tile: mu and rho are read from memory once, then from the cache.
    rows, cols, group = locate(tl.program_id(0) // draws, K, shift, ROWS, GROUPS)
    inside = within(rows, cols, N, K, shift)
    k0, k1 = load_key(seed_ptr)
    d = tl.program_id(0) % draws
    out = normals(after(rows, first_row), after(group, first_group), k0, k1, tl.load(draw_ptr + d), stream, GROUPS)
    if mu_ptr is not None:
        mu = load(mu_ptr, offsets(rows, cols, mu_row, mu_col), inside)
        rho = load(rho_ptr, offsets(rows, cols, rho_row, rho_col), inside)
        out = mu + softplus(rho) * out
    out_ptr += d.to(tl.int64) * N * K
    tl.store(out_ptr + offsets(rows, cols, K, 1), out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["stream", "first_row", "first_group"])
def gaussian_grad_kernel(
    grad_ptr,
    rho_ptr,
    drho_ptr,
    seed_ptr,
    draw_ptr,
    stream: tl.int32,
    first_row,
    first_group,
    shift,
    draws,
    N,
    K,
    rho_row,
    rho_col,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    rows, cols, group = locate(tl.program_id(0), K, shift, ROWS, GROUPS)
    inside = within(rows, cols, N, K, shift)
    at = offsets(rows, cols, K, 1)
    k0, k1 = load_key(seed_ptr)
    total = tl.zeros([ROWS, 64 * GROUPS], tl.float32)
    for d in range(draws):
        # N.to(...) would fail: Triton specialises an argument of 1 to a Python int.
        g = load(grad_ptr, d * tl.cast(N, tl.int64) * K + at, inside)
        draw = tl.load(draw_ptr + d)
        total += g * normals(after(rows, first_row), after(group, first_group), k0, k1, draw, stream, GROUPS)
    rho = load(rho_ptr, offsets(rows, cols, rho_row, rho_col), inside)
    tl.store(drho_ptr + at, (total * sigmoid(rho)).to(drho_ptr.dtype.element_ty), mask=inside)


def _sample(mu: Tensor | None, rho: Tensor | None, out: Tensor, mask: Mask) -> Tensor:
    """Write mu + softplus(rho) e to ``out`` [D, N, K], or e without mu and rho, and return ``out``."""
    strides = (0, 0, 0, 0) if mu is None or rho is None else (*mu.stride(), *rho.stride())
    if out.numel():
        with torch.cuda.device_of(out):
            gaussian_kernel[tiles.grid(mask, *out.shape[1:], draws=len(out))](
                mu,
                rho,
                out,
                *tiles.address(mask),
                tiles.shift(mask),
                *out.shape,
                *strides,
                ROWS=tiles.ROWS,
                **tiles.LAUNCH,
            )
    return out


def normal(rows: int, cols: int, *, mask: Mask) -> Tensor:
    """Return the contract's normals of each draw, float32 [D, rows, cols], on the draw's device."""
    return _sample(None, None, torch.empty(len(mask.draw), rows, cols, device=mask.draw.device), mask)


def gaussian_weight(mu: Tensor, rho: Tensor, *, mask: Mask, dtype: torch.dtype) -> Tensor:
    """Return mu + softplus(rho) e [D, N, K] in ``dtype``; mu and rho [N, K], e the contract's normals of each draw."""
    return _sample(mu, rho, torch.empty(len(mask.draw), *mu.shape, dtype=dtype, device=mu.device), mask)


def gaussian_grad(grad: Tensor, rho: Tensor, *, mask: Mask) -> Tensor:
    """Return drho [N, K] from grad [D, N, K] = dL/d(mu + softplus(rho) e), summed over draws."""
    out, grad = torch.empty(rho.shape, dtype=rho.dtype, device=rho.device), grad.contiguous()
    height = tiles.height(mask, grad, rho, out)
    if out.numel():
        with torch.cuda.device_of(out):
            gaussian_grad_kernel[tiles.grid(mask, *rho.shape, height)](
                grad,
                rho,
                out,
                *tiles.address(mask),
                tiles.shift(mask),
                len(grad),
                *rho.shape,
                *rho.stride(),
                ROWS=height,
                **tiles.LAUNCH,
            )
    return out
