"""masked_matmul: a matrix product that masks its weights in registers, just before the tensor cores use them.

The tile of weights is the left operand. Masked weights are never written to memory::

    forward          y^T  [N, M] = (z * W)   x^T       reduces over columns
    input gradient   dx^T [K, M] = (z * W)^T grad^T    reduces over rows

The mask is sampled in the main loop from the logits, or read from bits that :mod:`.mask_bits` sampled before. If there
are few tiles, the reduction is split among programs; the partial sums are added in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import Logits, Mask

from . import tiles
from .estimators import masked
from .mask_bits import WORD
from .matmul import STEP, Tile, precision, settled, strides
from .philox import GROUP, load_key, uniforms
from .split_sum import split, split_sum
from .tiles import after, offsets


@triton.jit
def unpacked(bits_ptr, rows, first, N, words, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return the mask bits of a tile [ROWS, COLS] as 0 and 1; ``first`` is the index of its first word."""
    at = first + tl.arange(0, COLS // WORD)
    word = tl.load(bits_ptr + offsets(rows, at, words, 1), mask=(rows < N)[:, None] & (at < words)[None, :], other=0)
    return ((word[:, :, None] >> tl.arange(0, WORD)[None, None, :]) & 1).reshape(ROWS, COLS)


@triton.jit(do_not_specialize=["stream", "first_row", "first_group", "temperature", "M", "draws", "steps"])
def masked_matmul_kernel(
    x_ptr,
    weight_ptr,
    logits_ptr,
    bits_ptr,
    bias_ptr,
    out_ptr,
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
    steps,
    x_draw,
    x_row,
    x_col,
    weight_row,
    weight_col,
    logits_row,
    logits_col,
    ESTIMATOR: tl.constexpr,
    TRANSPOSE: tl.constexpr,
    PRECISION: tl.constexpr,
    OUT: tl.constexpr,
    TOKENS: tl.constexpr,
    STEP: tl.constexpr,
):
    if TRANSPOSE:
        outs, reduced = K, N
        ROWS: tl.constexpr = STEP
        COLS: tl.constexpr = OUT
    else:
        outs, reduced = N, K
        ROWS: tl.constexpr = OUT
        COLS: tl.constexpr = STEP
    # Programs that share a tile of weights are neighbours: memory is read once, then the cache.
    program = tl.program_id(0)
    token_tiles = tl.cdiv(M, TOKENS)
    m = (program % token_tiles).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    program //= token_tiles
    d = (program % draws).to(tl.int64)
    program //= draws
    out_tiles = tl.cdiv(outs, OUT)
    out_tile = program % out_tiles
    share = (program // out_tiles).to(tl.int64)

    o = out_tile.to(tl.int64) * OUT + tl.arange(0, OUT)
    k0, k1 = load_key(seed_ptr)
    draw = tl.load(draw_ptr + d)
    x_ptr += d * x_draw
    if bits_ptr is not None:
        bits_ptr += d * N * tl.cdiv(K, WORD)
    acc = tl.zeros([OUT, TOKENS], tl.float32)
    for step in range(share * steps, tl.minimum((share + 1) * steps, tl.cdiv(reduced, STEP))):
        r = step * STEP + tl.arange(0, STEP)
        if TRANSPOSE:
            rows, cols, tile = r, o, out_tile
        else:
            rows, cols, tile = o, r, step
        inside = (rows < N)[:, None] & (cols < K)[None, :]
        w = tl.load(weight_ptr + offsets(rows, cols, weight_row, weight_col), mask=inside, other=0.0)
        x = tl.load(x_ptr + offsets(r, m, x_col, x_row), mask=(r < reduced)[:, None] & (m < M)[None, :], other=0.0)
        if bits_ptr is not None:
            bits = unpacked(bits_ptr, rows, tile * (COLS // WORD), N, tl.cdiv(K, WORD), ROWS, COLS)
            a = tl.where(bits != 0, w.to(x.dtype), 0.0).to(x.dtype)
        else:
            logit = tl.load(logits_ptr + offsets(rows, cols, logits_row, logits_col), mask=inside, other=0.0)
            group = after(tile * (COLS // GROUP), first_group)
            u = uniforms(after(rows, first_row), group, k0, k1, draw, stream, COLS // GROUP)
            a = masked(w.to(tl.float32), logit.to(tl.float32), u, temperature, ESTIMATOR).to(x.dtype)
        if TRANSPOSE:
            a = tl.trans(a)
        acc = settled(tl.dot(a, x, acc, input_precision=PRECISION))

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + o, mask=o < outs, other=0.0).to(tl.float32)[:, None]
    out_ptr += (share * draws + d) * M * outs
    tl.store(
        out_ptr + offsets(o, m, 1, outs), acc.to(out_ptr.dtype.element_ty), mask=(o < outs)[:, None] & (m < M)[None, :]
    )


def masked_matmul(
    x: Tensor,
    weight: Tensor,
    logits: Logits,
    bias: Tensor | None,
    *,
    mask: Mask,
    out: Tensor,
    transpose: bool = False,
    bits: Tensor | None = None,
) -> None:
    """Write one masked product for each draw to ``out``.

    Args:
        x: [D, M, K], or the gradient [D, M, N] with ``transpose``; of any strides.
        weight, logits: [N, K], of any strides.
        bias: [N] or None.
        mask: its column offset must be a multiple of 64.
        out: contiguous [D, M, N], or [D, M, K] with ``transpose``.
        transpose: multiply by the transpose of the masked weight.
        bits: the masks of the draws from :func:`.mask_bits.mask_bits`, used instead of the logits.
    """
    D, M, reduced = x.shape
    N, K = weight.shape
    outs = K if transpose else N
    if not out.numel():
        return
    tile = Tile.fit(x, weight, logits)
    programs = D * triton.cdiv(M, tile.tokens) * triton.cdiv(outs, tile.out)
    steps, shares = split(triton.cdiv(reduced, STEP), programs, x.device)
    partial = out if shares == 1 else torch.empty(shares, D, M, outs, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        masked_matmul_kernel[(programs * shares,)](
            x,
            weight,
            logits if bits is None else None,
            bits,
            bias if shares == 1 else None,
            partial,
            *tiles.address(mask),
            mask.temperature,
            D,
            M,
            N,
            K,
            steps,
            *strides(x),
            *weight.stride(),
            *logits.stride(),
            ESTIMATOR=mask.estimator,
            TRANSPOSE=transpose,
            PRECISION=precision(x.dtype),
            OUT=tile.out,
            TOKENS=tile.tokens,
            STEP=STEP,
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=False,
        )
    if shares > 1:
        split_sum(partial, bias, out)
