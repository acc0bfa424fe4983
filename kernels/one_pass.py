"""one_pass: the whole backward pass of one draw for few tokens; weights and logits are read once.

A program works on 64 columns and a share of the rows. For each tile of weights it computes ``G = grad^T x``, then
``dW`` and ``dlogit`` from it, and adds ``(z * W)^T grad^T`` to its ``dx^T``. The shares of dx are added in a fixed
order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import KLTerm, Logits, Mask

from . import tiles
from .estimators import pull, slope
from .matmul import capability, in_layout_of, precision, settled
from .pairs import masked_tile
from .philox import GROUP, load_key, singles, uniform_pairs
from .split_sum import most_shares, split, split_sum
from .tiles import after, aligned, load_tile, offsets


class Tile(NamedTuple):
    """Rows of weights in one step, and the largest number of tokens without spilled registers."""

    rows: int
    tokens: int
    warps: int
    stages: int
    resident: int  # programs that a multiprocessor runs at a time


# The keys are those of matmul.capability. Matrices that are not aligned allow half as many tokens, and fewer rows.
TILES = {8: Tile(16, 64, 4, 3, 2), 9: Tile(64, 128, 8, 2, 1)}
ODD = {8: Tile(16, 32, 4, 1, 1), 9: Tile(32, 64, 8, 1, 1)}
NARROW = Tile(64, 32, 4, 2, 2)
"""The tile of few tokens on Hopper: a multiprocessor runs two programs, so that one computes while the other waits. It
has no registers left for another estimator or a KL term."""


def tile_for(*matrices: Tensor) -> Tile:
    """Return the tile for these matrices, which are on one device."""
    return (TILES if aligned(*matrices) else ODD)[capability(matrices[0].device)]


def one_pass_fits(x: Tensor, *others: Tensor) -> bool:
    """Return True if x [D, M, K] has one draw, few tokens and a dtype of 16 bits; float32 needs too many registers.

    Args:
        others: the other matrices that the kernel reads.
    """
    return x.shape[0] == 1 and 1 <= x.shape[1] <= tile_for(x, *others).tokens and x.element_size() == 2


@triton.jit(do_not_specialize=["stream", "first_row", "first_group", "temperature", "M", "steps"])
def one_pass_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    logits_ptr,
    dx_ptr,
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
    M,
    N,
    K,
    steps,
    grad_row,
    grad_col,
    x_row,
    x_col,
    weight_row,
    weight_col,
    logits_row,
    logits_col,
    ESTIMATOR: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    across = tl.cdiv(K, GROUP)
    group = (tl.program_id(0) % across).to(tl.int64)
    share = (tl.program_id(0) // across).to(tl.int64)
    cols = group * GROUP + tl.arange(0, GROUP)
    m = tl.arange(0, TOKENS).to(tl.int64)
    index = tl.arange(0, ROWS).to(tl.int64)
    k0, k1 = load_key(seed_ptr)
    draw = tl.load(draw_ptr)
    x = tl.load(x_ptr + offsets(m, cols, x_row, x_col), mask=(m < M)[:, None] & (cols < K)[None, :], other=0.0)
    dx = tl.zeros([GROUP, TOKENS], tl.float32)
    g = tl.zeros([ROWS, GROUP], tl.float32)
    tile_at, grad_at = offsets(index, cols, K, 1), offsets(index, m, grad_col, grad_row)
    for step in range(share * steps, tl.minimum((share + 1) * steps, tl.cdiv(N, ROWS))):
        first = tl.cast(step, tl.int64) * ROWS
        rows = first + index
        at = first * K + tile_at
        if EVEN:
            inside, known = None, (m < M)[None, :]
            weight_at, logits_at, prior_at = at, at, at
        else:
            inside = (rows < N)[:, None] & (cols < K)[None, :]
            known = (rows < N)[:, None] & (m < M)[None, :]
            weight_at = offsets(rows, cols, weight_row, weight_col)
            logits_at = offsets(rows, cols, logits_row, logits_col)
            prior_at = offsets(rows, cols, prior_row, prior_col)
        w = in_layout_of(g, load_tile(weight_ptr + weight_at, inside).to(tl.float32))
        logit = in_layout_of(g, load_tile(logits_ptr + logits_at, inside).to(tl.float32))
        grad = load_tile(grad_ptr + first * grad_col + grad_at, known)
        u = uniform_pairs(after(rows, first_row), after(group, first_group), k0, k1, draw, stream, 1)
        a = masked_tile(w, logit, u, temperature, ESTIMATOR, x.dtype)
        if dlogits_ptr is not None:
            dz = w * slope(logit, singles(u), temperature, ESTIMATOR)
        dx = settled(tl.dot(tl.trans(a), grad, dx, input_precision=PRECISION))
        g = tl.dot(grad, x, input_precision=PRECISION)
        if dlogits_ptr is not None:
            dlogit = g * dz
            if prior_ptr is not None:
                dlogit += pull(logit, prior_ptr, kl_grad_ptr, prior_at, inside)
            tl.store(dlogits_ptr + at, dlogit.to(dlogits_ptr.dtype.element_ty), mask=inside)
        if dweight_ptr is not None:
            dweight = masked_tile(g, logit, u, temperature, ESTIMATOR, dweight_ptr.dtype.element_ty)
            tl.store(dweight_ptr + at, dweight, mask=inside)

    dx_ptr += share * M * K
    tl.store(
        dx_ptr + offsets(cols, m, 1, K), dx.to(dx_ptr.dtype.element_ty), mask=(cols < K)[:, None] & (m < M)[None, :]
    )


def one_pass(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Logits,
    *,
    mask: Mask,
    dweight: Tensor | None,
    dlogits: Tensor | None,
    kl: KLTerm | None = None,
) -> Tensor:
    """Return dx [M, K] from grad [M, N] and x [M, K], M small; write contiguous ``dweight`` and ``dlogits`` [N, K].

    The gradient of ``kl`` is added to dlogits. ``mask.col`` must be a multiple of 64.
    """
    M, N = grad.shape
    K = x.shape[1]
    dx = torch.empty(M, K, dtype=x.dtype, device=x.device)
    if not dx.numel():
        return dx
    tile = tile_for(x, grad, weight, logits)
    if tile == TILES[9] and NARROW.tokens >= M and kl is None and mask.estimator == "straight_through":
        tile = NARROW
    read = (weight, logits) if kl is None else (weight, logits, kl.prior_logits)
    programs = triton.cdiv(K, GROUP.value)
    most = most_shares(weight.nbytes + logits.nbytes, dx.numel())
    steps, shares = split(triton.cdiv(N, tile.rows), programs, tile.resident, x.device, most)
    partial = dx if shares == 1 else torch.empty(shares, M, K, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        one_pass_kernel[(programs * shares,)](
            grad,
            x,
            weight,
            logits,
            partial,
            dweight,
            dlogits,
            *tiles.kl_arguments(kl),
            *tiles.address(mask),
            mask.temperature,
            M,
            N,
            K,
            steps,
            *grad.stride(),
            *x.stride(),
            *weight.stride(),
            *logits.stride(),
            ESTIMATOR=mask.estimator,
            EVEN=N % tile.rows == K % GROUP.value == 0 and all(t.is_contiguous() for t in read),
            PRECISION=precision(x.dtype),
            ROWS=tile.rows,
            TOKENS=max(16, triton.next_power_of_2(M)),
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=False,
        )
    if shares > 1:
        split_sum(partial, None, dx)
    return dx
