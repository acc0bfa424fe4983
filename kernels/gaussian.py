"""Gaussian weights ``mu + softplus(rho) e`` under the contract's normals e, and their gradient, one pass each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .estimators import sigmoid
from .normal import logarithm, normals
from .philox import load_key
from .tiles import locate, offsets


@triton.jit
def softplus(x):
    """ln(1 + exp(x)) in fp32; where exp(-|x|) is small, what 1 + exp(-|x|) rounds away is added again."""
    e = tl.exp(-tl.abs(x))
    total = 1.0 + e
    return tl.maximum(x, 0.0) + (logarithm(total) + (e - (total - 1.0)) / total)


@triton.jit(do_not_specialize=["stream", "row_offset"])
def gaussian_kernel(
    mu_ptr,
    rho_ptr,
    out_ptr,
    seed_ptr,
    draw_ptr,
    stream: tl.int32,
    row_offset: tl.int64,
    N,
    K,
    mu_row,
    mu_col,
    rho_row,
    rho_col,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    rows, cols, group = locate(tl.program_id(0), K, ROWS, GROUPS)
    inside = (rows < N)[:, None] & (cols < K)[None, :]
    k0, k1 = load_key(seed_ptr)
    out = normals(rows + row_offset, group, k0, k1, tl.load(draw_ptr), stream, GROUPS)
    if mu_ptr is not None:
        mu = tl.load(mu_ptr + offsets(rows, cols, mu_row, mu_col), mask=inside, other=0.0).to(tl.float32)
        rho = tl.load(rho_ptr + offsets(rows, cols, rho_row, rho_col), mask=inside, other=0.0).to(tl.float32)
        out = mu + softplus(rho) * out
    tl.store(out_ptr + offsets(rows, cols, K, 1), out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["stream"])
def gaussian_grad_kernel(
    grad_ptr,
    rho_ptr,
    drho_ptr,
    seed_ptr,
    draw_ptr,
    stream: tl.int32,
    draws,
    N,
    K,
    rho_row,
    rho_col,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    rows, cols, group = locate(tl.program_id(0), K, ROWS, GROUPS)
    inside = (rows < N)[:, None] & (cols < K)[None, :]
    at = offsets(rows, cols, K, 1)
    k0, k1 = load_key(seed_ptr)
    total = tl.zeros([ROWS, 64 * GROUPS], tl.float32)
    for d in range(draws):
        # not N.to(...): Triton specialises an argument of 1 to a Python int
        g = tl.load(grad_ptr + d * tl.cast(N, tl.int64) * K + at, mask=inside, other=0.0).to(tl.float32)
        total += g * normals(rows, group, k0, k1, tl.load(draw_ptr + d), stream, GROUPS)
    rho = tl.load(rho_ptr + offsets(rows, cols, rho_row, rho_col), mask=inside, other=0.0).to(tl.float32)
    tl.store(drho_ptr + at, (total * sigmoid(rho)).to(drho_ptr.dtype.element_ty), mask=inside)


def _launch(
    mu: Tensor | None, rho: Tensor | None, out: Tensor, seed: Tensor, draw: Tensor, stream: int, row_offset: int
) -> None:
    N, K = out.shape
    strides = (0, 0, 0, 0) if mu is None or rho is None else (*mu.stride(), *rho.stride())
    if out.numel():
        with torch.cuda.device_of(out):
            gaussian_kernel[(tiles.count(N, K),)](
                mu,
                rho,
                out,
                seed,
                draw,
                stream,
                row_offset,
                N,
                K,
                *strides,
                ROWS=tiles.ROWS,
                GROUPS=tiles.GROUPS,
                num_warps=tiles.WARPS,
                enable_fp_fusion=False,
            )


def normal(rows: int, cols: int, seed: Tensor, draw: Tensor, stream: int, row_offset: int) -> Tensor:
    """float32 [D, rows, cols] on the draw's device: the contract's normals of the block from ``row_offset`` on."""
    out = torch.empty(len(draw), rows, cols, device=draw.device)
    for i, part in enumerate(out):
        _launch(None, None, part, seed, draw[i : i + 1], stream, row_offset)
    return out


def gaussian_weight(mu: Tensor, rho: Tensor, seed: Tensor, draw: Tensor, stream: int, dtype: torch.dtype) -> Tensor:
    """mu + softplus(rho) e [D, N, K] in ``dtype``, under the contract's normals e of each draw; mu and rho [N, K]."""
    out = torch.empty(len(draw), *mu.shape, dtype=dtype, device=mu.device)
    for i, part in enumerate(out):
        _launch(mu, rho, part, seed, draw[i : i + 1], stream, 0)
    return out


def gaussian_grad(grad: Tensor, rho: Tensor, seed: Tensor, draw: Tensor, stream: int) -> Tensor:
    """drho [N, K] of contiguous grad [D, N, K] = dL/d(mu + softplus(rho) e), summed over draws."""
    N, K = rho.shape
    out = torch.empty(N, K, dtype=rho.dtype, device=rho.device)
    if out.numel():
        with torch.cuda.device_of(out):
            gaussian_grad_kernel[(tiles.count(N, K),)](
                grad.contiguous(),
                rho,
                out,
                seed,
                draw,
                stream,
                len(draw),
                N,
                K,
                *rho.stride(),
                ROWS=tiles.ROWS,
                GROUPS=tiles.GROUPS,
                num_warps=tiles.WARPS,
                enable_fp_fusion=False,
            )
    return out
