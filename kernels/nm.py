"""N:M masks: exactly N of M neighbouring weights are kept; :mod:`stochprune.patterns` defines their distribution.

A tile [R, C] is split into M tiles [R, C / M], one for each column of the groups. Sampling and covariances need sums
over subsets of the columns; these are updated from column to column in registers.
"""
# ruff: noqa: RUF005  Triton does not support starred tuples.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import Grads2, Logits, Mask, Needs2

from . import tiles
from .philox import load_key, uniforms
from .tiles import after, load, locate, offsets, within

LARGEST = tl.constexpr(1e6)
RANGE = tl.constexpr(20.0)


@triton.jit
def columns(tile, M: tl.constexpr):
    """Return the columns of the groups of a tile [R, C]: a tuple of M tiles [R, C / M]."""
    R: tl.constexpr = tile.shape[0]
    C: tl.constexpr = tile.shape[1]
    if M == 2:
        a, b = tl.split(tile.reshape(R, C // 2, 2))
        return a, b
    elif M == 4:
        x, y = tl.split(tile.reshape(R, C // 4, 2, 2))  # even columns, odd columns
        a, c = tl.split(x)
        b, d = tl.split(y)
        return a, b, c, d
    else:
        x, y = tl.split(tile.reshape(R, C // 8, 2, 2, 2))
        p, q = tl.split(x)
        r, s = tl.split(y)
        a, e = tl.split(p)
        c, g = tl.split(q)
        b, f = tl.split(r)
        d, h = tl.split(s)
        return a, b, c, d, e, f, g, h


@triton.jit
def tile_of(parts, M: tl.constexpr):
    """Return the tile [R, C] of these M columns: the inverse of :func:`columns`."""
    R: tl.constexpr = parts[0].shape[0]
    G: tl.constexpr = parts[0].shape[1]
    if M == 2:
        return tl.join(parts[0], parts[1]).reshape(R, G * 2)
    elif M == 4:
        x, y = tl.join(parts[0], parts[2]), tl.join(parts[1], parts[3])
        return tl.join(x, y).reshape(R, G * 4)
    else:
        p, q = tl.join(parts[0], parts[4]), tl.join(parts[2], parts[6])
        r, s = tl.join(parts[1], parts[5]), tl.join(parts[3], parts[7])
        return tl.join(tl.join(p, q), tl.join(r, s)).reshape(R, G * 8)


@triton.jit
def odds(logits, N: tl.constexpr, M: tl.constexpr):
    """Return exp(logit - c) of each column; c is the group's N-th largest logit, so products of N stay in range."""
    lowest = tl.full(logits[0].shape, -1e9, tl.float32)
    top = (lowest,) * N
    for j in tl.static_range(M):
        x = tl.minimum(tl.maximum(logits[j], -LARGEST), LARGEST)
        raised = ()
        for k in tl.static_range(N):
            raised = raised + (tl.maximum(top[k], x),)
            x = tl.minimum(top[k], x)
        top = raised
    w = ()
    for j in tl.static_range(M):
        x = tl.minimum(tl.maximum(logits[j], -LARGEST), LARGEST) - top[N - 1]
        w = w + (tl.exp(tl.minimum(tl.maximum(x, -RANGE), RANGE)),)
    return w


@triton.jit
def suffix_sums(w, N: tl.constexpr, M: tl.constexpr):
    """Return at [j * (N + 1) + k], j = 0 .. M, k = 0 .. N: the sum of the products of k odds of columns j .. M - 1."""
    zero = tl.zeros(w[0].shape, tl.float32)
    after = (zero + 1.0,) + (zero,) * N
    sums = after
    for i in tl.static_range(M):
        here = (after[0],)
        for k in tl.static_range(N):
            here = here + (after[k + 1] + w[M - 1 - i] * after[k],)
        sums = here + sums
        after = here
    return sums


@triton.jit
def draw_patterns(logits, u, N: tl.constexpr, M: tl.constexpr):
    """Return which columns are kept under the 16 bits ``u`` of each group: a tuple of M boolean tiles."""
    w = odds(logits, N, M)
    rest = suffix_sums(w, N, M)
    scale = 65536.0 / rest[N]
    level = u.to(tl.float32) + 0.5
    zero = tl.zeros(w[0].shape, tl.float32)
    before, product = zero, zero + 1.0  # sums of the patterns before this one, and product of the kept columns' odds
    left = tl.full(w[0].shape, N, tl.int32)
    kept = ()
    for j in tl.static_range(M):
        including = zero
        for k in tl.static_range(N):
            including = tl.where(left == k + 1, rest[(j + 1) * (N + 1) + k], including)
        bound = before + product * w[j] * including
        keep = (left > 0) & ((left == M - j) | (bound * scale >= level))
        kept = kept + (keep,)
        before = tl.where(keep, before, bound)
        product = tl.where(keep, product * w[j], product)
        left -= keep.to(tl.int32)
    return kept


@triton.jit
def covariances(logits, values, N: tl.constexpr, M: tl.constexpr):
    """Return sum_i value[i] cov(i kept, j kept) for each column j: the gradient of the inclusion probabilities."""
    w = odds(logits, N, M)
    rest = suffix_sums(w, N, M)
    zero = tl.zeros(w[0].shape, tl.float32)
    mean = zero
    for j in tl.static_range(M):
        mean += values[j] * (1.0 / M)  # subtracting it changes nothing but the rounding error
    dw = ()
    for j in tl.static_range(M):
        dw = dw + (w[j] * (values[j] - mean),)

    drest = (zero,) * (N + 1)  # the derivative of suffix_sums
    dafter = drest
    for i in tl.static_range(M):
        dhere = (zero,)
        for k in tl.static_range(N):
            dhere = dhere + (dafter[k + 1] + w[M - 1 - i] * dafter[k] + dw[M - 1 - i] * rest[(M - i) * (N + 1) + k],)
        drest = dhere + drest
        dafter = dhere

    inverse = 1.0 / rest[N]
    growth = drest[N] * inverse
    ahead, dahead = (zero + 1.0,) + (zero,) * (N - 1), (zero,) * N
    out = ()
    for j in tl.static_range(M):
        others, dothers = zero, zero  # subsets of N - 1 other columns
        for k in tl.static_range(N):
            r, dr = rest[(j + 1) * (N + 1) + N - 1 - k], drest[(j + 1) * (N + 1) + N - 1 - k]
            others += ahead[k] * r
            dothers += dahead[k] * r + ahead[k] * dr
        out = out + ((dw[j] * others + w[j] * dothers - w[j] * others * growth) * inverse,)
        moved, dmoved = (ahead[0],), (dahead[0],)
        for k in tl.static_range(1, N):
            moved = moved + (ahead[k] + w[j] * ahead[k - 1],)
            dmoved = dmoved + (dahead[k] + w[j] * dahead[k - 1] + dw[j] * ahead[k - 1],)
        ahead, dahead = moved, dmoved
    return out


@triton.jit
def _mask(logit, rows, group, k0, k1, draw, stream, N: tl.constexpr, M: tl.constexpr, GROUPS: tl.constexpr):
    u = uniforms(rows, group, k0, k1, draw, stream, GROUPS)
    kept = draw_patterns(columns(logit, M), columns(u, M)[0], N, M)
    flags = ()
    for j in tl.static_range(M):
        flags = flags + (kept[j].to(tl.int32),)
    return tile_of(flags, M) != 0


@triton.jit(do_not_specialize=["stream", "first_row", "first_group", "draws"])
def nm_prepass_kernel(
    weight_ptr,
    logits_ptr,
    out_ptr,
    seed_ptr,
    draw_ptr,
    stream: tl.int32,
    first_row,
    first_group,
    shift,
    draws,
    rows_total,
    cols_total,
    weight_row,
    weight_col,
    logits_row,
    logits_col,
    N: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    # Neighbouring programs share a tile: its weights are read from memory once, then from the cache.
    rows, cols, group = locate(tl.program_id(0) // draws, cols_total, shift, ROWS, GROUPS)
    inside = within(rows, cols, rows_total, cols_total, shift)
    w = load(weight_ptr, offsets(rows, cols, weight_row, weight_col), inside)
    logit = load(logits_ptr, offsets(rows, cols, logits_row, logits_col), inside)
    k0, k1 = load_key(seed_ptr)
    d = tl.program_id(0) % draws
    first, draw = after(group, first_group), tl.load(draw_ptr + d)
    z = tl.where(_mask(logit, after(rows, first_row), first, k0, k1, draw, stream, N, M, GROUPS), w, 0.0)
    out_ptr += d.to(tl.int64) * rows_total * cols_total
    tl.store(out_ptr + offsets(rows, cols, cols_total, 1), z.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["stream", "first_row", "first_group"])  # one draw has a kernel without a loop
def nm_weight_grad_kernel(
    grad_ptr,
    weight_ptr,
    logits_ptr,
    dweight_ptr,
    dlogits_ptr,
    seed_ptr,
    draw_ptr,
    stream: tl.int32,
    first_row,
    first_group,
    shift,
    draws,
    rows_total,
    cols_total,
    weight_row,
    weight_col,
    logits_row,
    logits_col,
    N: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    rows, cols, group = locate(tl.program_id(0), cols_total, shift, ROWS, GROUPS)
    inside = within(rows, cols, rows_total, cols_total, shift)
    at = offsets(rows, cols, cols_total, 1)
    logit = load(logits_ptr, offsets(rows, cols, logits_row, logits_col), inside)
    k0, k1 = load_key(seed_ptr)
    first = after(group, first_group)
    total = tl.zeros([ROWS, 64 * GROUPS], tl.float32)
    dweight = tl.zeros([ROWS, 64 * GROUPS], tl.float32)
    for d in range(draws):
        g = load(grad_ptr, d * tl.cast(rows_total, tl.int64) * cols_total + at, inside)
        total += g
        if dweight_ptr is not None:
            draw = tl.load(draw_ptr + d)
            dweight += tl.where(_mask(logit, after(rows, first_row), first, k0, k1, draw, stream, N, M, GROUPS), g, 0.0)
    if dlogits_ptr is not None:
        w = load(weight_ptr, offsets(rows, cols, weight_row, weight_col), inside)
        dlogit = tile_of(covariances(columns(logit, M), columns(total * w, M), N, M), M)  # it is linear in g
        tl.store(dlogits_ptr + at, dlogit.to(dlogits_ptr.dtype.element_ty), mask=inside)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + at, dweight.to(dweight_ptr.dtype.element_ty), mask=inside)


ROWS = {2: 64, 4: 32, 8: 16}
"""Rows of a tile by M, limited by the registers for the sums over subsets."""
WARPS = {2: tiles.WARPS, 4: tiles.WARPS, 8: tiles.WARPS // 2}
"""Warps of the backward pass by M: each thread loads 16 bytes, also of two groups of eight 16-bit weights."""


def nm_masked_weight(
    weight: Tensor, logits: Logits, pattern: tuple[int, int], *, mask: Mask, dtype: torch.dtype
) -> Tensor:
    """Return z * weight [D, N, K] in ``dtype``, z the n:m mask of each draw; weight, logits [N, K] of any strides."""
    n, m = pattern
    out = torch.empty(len(mask.draw), *weight.shape, dtype=dtype, device=weight.device)
    if out.numel():
        with torch.cuda.device_of(weight):
            nm_prepass_kernel[tiles.grid(mask, *weight.shape, ROWS[m], len(out))](
                weight,
                logits,
                out,
                *tiles.address(mask),
                tiles.shift(mask),
                *out.shape,
                *weight.stride(),
                *logits.stride(),
                N=n,
                M=m,
                ROWS=ROWS[m],
                **tiles.LAUNCH,
            )
    return out


def nm_weight_grad(
    grad: Tensor, weight: Tensor, logits: Logits, pattern: tuple[int, int], *, mask: Mask, needs: Needs2
) -> Grads2:
    """As :func:`stochprune.reference.nm_weight_grad`."""
    n, m = pattern
    grad = grad.contiguous()
    dweight, dlogits = (
        torch.empty(like.shape, dtype=like.dtype, device=like.device) if need else None
        for like, need in zip((weight, logits), needs, strict=True)
    )
    # Half as many rows if each weight needs registers for its own address, as in all kernels.
    height = ROWS[m] * tiles.height(mask, grad, weight, logits) // tiles.ROWS
    height = height // 2 if len(grad) > 1 else height  # the sums over draws need registers too
    if weight.numel():
        with torch.cuda.device_of(weight):
            nm_weight_grad_kernel[tiles.grid(mask, *weight.shape, height)](
                grad,
                weight,
                logits,
                dweight,
                dlogits,
                *tiles.address(mask),
                tiles.shift(mask),
                *grad.shape,
                *weight.stride(),
                *logits.stride(),
                N=n,
                M=m,
                ROWS=height,
                **tiles.LAUNCH | {"num_warps": WARPS[m]},
            )
    return dweight, dlogits
