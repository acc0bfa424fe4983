"""masked_matmul: a matrix product that masks its weights in registers, just before the tensor cores use them.

The tile of weights is the left operand. Masked weights are never written to memory::

    forward          y^T  [N, M] = (z * W)   x^T       reduces over columns
    input gradient   dx^T [K, M] = (z * W)^T grad^T    reduces over rows

The mask is sampled in the main loop, with thresholds from the logits or, if they were formed before, packed thresholds
(:mod:`.thresholds`). If there are few tiles, the reduction is split among programs; the partial sums are added in a
fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import Logits, Mask

from . import tiles
from .estimators import hard, masked
from .matmul import STEP, Tile, precision, settled, stages, strides
from .pairs import masked_pairs, raised_pairs
from .philox import GROUP, load_key, uniform_pairs, uniforms
from .split_sum import most_shares, split, split_sum
from .tiles import after, load_tile, offsets


@triton.jit(do_not_specialize=["stream", "first_row", "first_group", "temperature", "M", "draws", "steps"])
def masked_matmul_kernel(
    x_ptr,
    weight_ptr,
    logits_ptr,
    thresholds_ptr,
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
    words,
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
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    OUT: tl.constexpr,
    TOKENS: tl.constexpr,
    STEP: tl.constexpr,
):
    if TRANSPOSE:
        outs, reduced = K, N
        COLS: tl.constexpr = OUT
    else:
        outs, reduced = N, K
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
    first = (program // out_tiles).to(tl.int64) * steps

    o = out_tile.to(tl.int64) * OUT + tl.arange(0, OUT)
    index = tl.arange(0, STEP)
    r = first * STEP + index
    k0, k1 = load_key(seed_ptr)
    draw = tl.load(draw_ptr + d)
    if TRANSPOSE:
        rows, cols, first_word = r, o, out_tile.to(tl.int64) * (OUT // 2)
        weight_step, logits_step, words_step = weight_row, logits_row, tl.cast(words, tl.int64) * STEP
    else:
        rows, cols, first_word = o, r, first * (STEP // 2)
        weight_step, logits_step, words_step = weight_col, logits_col, STEP // 2
    word = first_word + tl.arange(0, COLS // 2)
    # Tokens behind the last one read the first: nothing is stored for them.
    x_ptr += d * x_draw + first * STEP * x_col
    x_at = offsets(index, tl.where(m < M, m, 0), x_col, x_row)
    weight_at = offsets(rows, cols, weight_row, weight_col)
    if thresholds_ptr is not None:
        thresholds_at = offsets(rows, word, words, 1)
    else:
        logits_at = offsets(rows, cols, logits_row, logits_col)
    acc = tl.zeros([OUT, TOKENS], tl.float32)
    for step in range(first, tl.minimum(first + steps, tl.cdiv(reduced, STEP))):
        if EVEN:
            inside, known, left = None, None, None
        else:
            rest = index < reduced - step * STEP
            if TRANSPOSE:
                inside = rest[:, None] & (o < outs)[None, :]
                known = rest[:, None] & (word < words)[None, :]
            else:
                inside = (o < outs)[:, None] & rest[None, :]
                known = (o < outs)[:, None]
            left = rest[:, None]
        w = load_tile(weight_ptr + weight_at, inside)
        x = load_tile(x_ptr + x_at, left)
        if TRANSPOSE:
            sampled, group = step * STEP + index, out_tile.to(tl.int64) * (OUT // GROUP)
        else:
            sampled, group = o, step * (STEP // GROUP)
        sampled, group = after(sampled, first_row), after(group, first_group)
        if hard(ESTIMATOR):
            u = uniform_pairs(sampled, group, k0, k1, draw, stream, COLS // GROUP)
            if thresholds_ptr is not None:
                raised = load_tile(thresholds_ptr + thresholds_at, known).to(tl.uint32, bitcast=True)
            else:
                raised = raised_pairs(load_tile(logits_ptr + logits_at, inside).to(tl.float32))
            a = masked_pairs(w.to(x.dtype), raised, u)
        else:
            u = uniforms(sampled, group, k0, k1, draw, stream, COLS // GROUP)
            logit = load_tile(logits_ptr + logits_at, inside).to(tl.float32)
            a = masked(w.to(tl.float32), logit, u, temperature, ESTIMATOR).to(x.dtype)
        if TRANSPOSE:
            a = tl.trans(a)
        acc = settled(tl.dot(a, x, acc, input_precision=PRECISION))
        x_ptr += tl.cast(x_col, tl.int64) * STEP
        weight_ptr += tl.cast(weight_step, tl.int64) * STEP
        if thresholds_ptr is not None:
            thresholds_ptr += words_step
        else:
            logits_ptr += tl.cast(logits_step, tl.int64) * STEP

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + o, mask=o < outs, other=0.0).to(tl.float32)[:, None]
    out_ptr += ((program // out_tiles).to(tl.int64) * draws + d) * M * outs
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
    thresholds: Tensor | None = None,
) -> None:
    """Write one masked product for each draw to ``out``.

    Args:
        x: [D, M, K], or the gradient [D, M, N] with ``transpose``; of any strides.
        weight, logits: [N, K], of any strides.
        bias: [N] or None.
        mask: its column offset must be a multiple of 64.
        out: contiguous [D, M, N], or [D, M, K] with ``transpose``.
        transpose: multiply by the transpose of the masked weight.
        thresholds: packed thresholds of the logits, which are then not read; for hard masks only.
    """
    D, M, reduced = x.shape
    N, K = weight.shape
    outs = K if transpose else N
    if not out.numel():
        return
    read = (weight, logits) if thresholds is None else (weight,)
    tile = Tile.fit(x, *read, thresholds=thresholds is not None)
    each = weight.element_size() + (logits.element_size() if thresholds is None else 2)  # bytes read for a weight
    programs = D * triton.cdiv(M, tile.tokens) * triton.cdiv(outs, tile.out)
    most = most_shares(weight.numel() * each, out.numel())
    steps, shares = split(triton.cdiv(reduced, STEP), programs, tile.resident, x.device, most)
    partial = out if shares == 1 else torch.empty(shares, D, M, outs, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        masked_matmul_kernel[(programs * shares,)](
            x,
            weight,
            logits if thresholds is None else None,
            thresholds,
            bias if shares == 1 else None,
            partial,
            *tiles.address(mask),
            mask.temperature,
            D,
            M,
            N,
            K,
            0 if thresholds is None else thresholds.shape[1],
            steps,
            *strides(x),
            *weight.stride(),
            *logits.stride(),
            ESTIMATOR=mask.estimator,
            TRANSPOSE=transpose,
            EVEN=outs % tile.out == reduced % STEP == 0,
            PRECISION=precision(x.dtype),
            OUT=tile.out,
            TOKENS=tile.tokens,
            STEP=STEP,
            num_warps=tile.warps,
            num_stages=stages(tile, each, x.element_size(), x.device),
            enable_fp_fusion=False,
        )
    if shares > 1:
        split_sum(partial, bias, out)
