"""masked_conv: a convolution that masks its filters in registers, as a matrix product over unfolded inputs.

The masked filters are the left operand, as in :mod:`.masked_matmul`, and are never written to memory. The tokens are
the output positions of all examples of a draw::

    y^T [N, tokens] = (z * W) x^T,    x [tokens, C * P]: the inputs under the P kernel positions

x is never unfolded in memory: each step of the reduction reads 64 columns (c, p) of it in place.
"""
# ruff: noqa: RUF005  Triton does not support starred tuples.

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import Logits, Mask

from . import matmul, tiles
from .conv_route import SPILLS, choose, result_format
from .estimators import hard, masked
from .matmul import STEP, Tile, precision, settled, stages, tile_for, usable
from .pairs import masked_pairs, raised_pairs
from .philox import GROUP, load_key, uniform_pairs, uniforms
from .split_sum import most_shares, split, split_sum
from .thresholds import cache
from .tiles import after, aligned, load, load_tile, offsets
from .unfold import LARGEST_KERNEL, edges, interleaved, located, taps

NARROW = Tile(64, 64, 8, 3, 1)
"""The widest tile if wider ones spill registers."""
RESIDENT = 2
"""Most programs that a multiprocessor runs at a time: they need more registers than those of a matrix product."""

GEOMETRY = ["height", "width", "out_height", "out_width", "stride_y", "stride_x", "padding_y", "padding_x"]
STRIDES = ["x_draw", "x_example", "x_channel", "x_y", "x_x", "out_example", "out_channel", "out_position"]


@triton.jit(
    do_not_specialize=["stream", "first_row", "first_group", "temperature", "draws", "M", "steps", *GEOMETRY, *STRIDES]
)
def masked_conv_kernel(
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
    height,
    width,
    out_height,
    out_width,
    stride_y,
    stride_x,
    padding_y,
    padding_x,
    x_draw,
    x_example,
    x_channel,
    x_y,
    x_x,
    out_example,
    out_channel,
    out_position,
    weight_row,
    weight_col,
    logits_row,
    logits_col,
    ESTIMATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    POSITIONS: tl.constexpr,
    WIDTH: tl.constexpr,
    DOWN: tl.constexpr,
    RIGHT: tl.constexpr,
    OUT: tl.constexpr,
    TOKENS: tl.constexpr,
    STEP: tl.constexpr,
):
    # Programs that share a tile of weights are neighbours: memory is read once, then the cache.
    program = tl.program_id(0)
    token_tiles = tl.cdiv(M, TOKENS)
    first_token = program % token_tiles * TOKENS
    program //= token_tiles
    d = (program % draws).to(tl.int64)
    program //= draws
    out_tiles = tl.cdiv(N, OUT)
    o = (program % out_tiles).to(tl.int64) * OUT + tl.arange(0, OUT)
    share = (program // out_tiles).to(tl.int64)

    # Tokens are read in parts of 32: so a thread reads few columns of x, for several tokens, and computes few offsets.
    PARTS: tl.constexpr = max(1, TOKENS // 32)
    # As integers: Triton 3.6 fails if a matrix instruction reads the result of a reshape directly, without a cast.
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    INTEGER: tl.constexpr = tl.int16 if DTYPE.primitive_bitwidth == 16 else tl.int32
    x_ptr = x_ptr.to(tl.pointer_type(INTEGER), bitcast=True)
    x_ptr += d * x_draw
    tokens_at, edge_bits = (), ()
    for part in tl.static_range(PARTS):
        m = first_token + part * (TOKENS // PARTS) + tl.arange(0, TOKENS // PARTS)
        example, y, x = located(m, out_height, out_width)
        y, x = y * stride_y - padding_y, x * stride_x - padding_x
        tokens_at = tokens_at + ((example * x_example + y * x_y + x * x_x).to(tl.int32),)
        outside = edges(y, height, POSITIONS // WIDTH, DOWN) | (edges(x, width, WIDTH, RIGHT) << 16) | 0x8000
        edge_bits = edge_bits + (tl.where(m < M, outside, -1),)

    k0, k1 = load_key(seed_ptr)
    draw = tl.load(draw_ptr + d)
    acc = tl.zeros([OUT, TOKENS], tl.float32)
    for step in range(share * steps, tl.minimum((share + 1) * steps, tl.cdiv(K, STEP))):
        r = step * STEP + tl.arange(0, STEP)
        inside = (o < N)[:, None] & (r < K)[None, :]
        w = load_tile(weight_ptr + offsets(o, r, weight_row, weight_col), inside)
        tap_at, bits = taps(r.to(tl.int32), K, x_channel, x_y, x_x, POSITIONS, WIDTH, DOWN, RIGHT)
        parts = ()
        for part in tl.static_range(PARTS):
            there = (edge_bits[part][None, :] & bits[:, None]) == 0
            parts = parts + (tl.load(x_ptr + (tokens_at[part][None, :] + tap_at[:, None]), mask=there, other=0),)
        b = interleaved(parts).to(DTYPE, bitcast=True)
        sampled, group = after(o, first_row), after(step * (STEP // GROUP), first_group)
        if thresholds_ptr is not None:
            at = offsets(o, step * (STEP // 2) + tl.arange(0, STEP // 2), words, 1)
            raised = load_tile(thresholds_ptr + at, (o < N)[:, None]).to(tl.uint32, bitcast=True)
        else:
            logit = load(logits_ptr, offsets(o, r, logits_row, logits_col), inside)
            if hard(ESTIMATOR):
                raised = raised_pairs(logit)
        if hard(ESTIMATOR):
            u = uniform_pairs(sampled, group, k0, k1, draw, stream, STEP // GROUP)
            a = masked_pairs(w.to(b.dtype), raised, u)
        else:
            u = uniforms(sampled, group, k0, k1, draw, stream, STEP // GROUP)
            a = masked(w.to(tl.float32), logit, u, temperature, ESTIMATOR).to(b.dtype)
        acc = settled(tl.dot(a, b, acc, input_precision=PRECISION))

    if bias_ptr is not None:
        bias = tl.load(bias_ptr + o, mask=(o < N) & (share == 0), other=0.0).to(tl.float32)
        acc += bias[:, None]
    out_ptr += (share * draws + d) * M * N
    acc = acc.reshape(OUT, TOKENS // PARTS, PARTS).permute(0, 2, 1).reshape(OUT, TOKENS)
    m = first_token + tl.arange(0, TOKENS)
    example, y, x = located(m, out_height, out_width)
    at = o[:, None] * out_channel + (example * out_example + (y * out_width + x) * out_position)[None, :]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=(o < N)[:, None] & (m < M)[None, :])


def masked_conv(
    x: Tensor,
    weight: Tensor,
    logits: Logits,
    bias: Tensor | None,
    *,
    mask: Mask,
    geometry: Sequence[int],
    out: Tensor,
    thresholds: Tensor | None = None,
) -> None:
    """Write one masked convolution for each draw to ``out``.

    Args:
        x: [D, M, C, H, W], of any strides.
        weight, logits: [N, C, kernel height, kernel width].
        bias: [N] or None.
        mask: its column offset must be a multiple of 64.
        geometry: stride, padding and dilation, each along height and width.
        out: [D, M, N, OH, OW]; in memory the draws are contiguous, and each is contiguous or has the channels last.
        thresholds: packed thresholds of the logits, which are then not read; for hard masks only.
    """
    D, _, N, out_height, out_width = out.shape
    M = out[0].numel() // N
    if not out.numel():
        return
    # A filter with the channels last is copied: the main loop reads it once for each draw and each tile of tokens.
    matrix, levels = weight.flatten(1), logits.flatten(1)
    K = matrix.shape[1]
    read = (matrix, levels) if thresholds is None else (matrix,)
    tile = fit(x, M, aligned(*read))
    each = matrix.element_size() + (levels.element_size() if thresholds is None else 2)  # bytes read for a weight
    programs = D * triton.cdiv(M, tile.tokens) * triton.cdiv(N, tile.out)
    resident = min(tile.resident, RESIDENT) if x.element_size() == 2 else 1
    most = most_shares(matrix.numel() * each, out.numel())
    steps, shares = split(triton.cdiv(K, STEP), programs, resident, x.device, most)
    partial = out if shares == 1 else torch.empty(shares, D * M * N, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        masked_conv_kernel[(programs * shares,)](
            x,
            matrix,
            levels if thresholds is None else None,
            thresholds,
            bias,
            partial,
            *tiles.address(mask),
            mask.temperature,
            D,
            M,
            N,
            K,
            0 if thresholds is None else thresholds.shape[1],
            steps,
            *x.shape[-2:],
            out_height,
            out_width,
            *geometry[:4],
            *x.stride(),
            *out.stride()[1:3],
            out.stride(4),
            *matrix.stride(),
            *levels.stride(),
            ESTIMATOR=mask.estimator,
            PRECISION=precision(x.dtype),
            POSITIONS=weight[0, 0].numel(),
            WIDTH=weight.shape[3],
            DOWN=geometry[4],
            RIGHT=geometry[5],
            OUT=tile.out,
            TOKENS=tile.tokens,
            STEP=STEP,
            num_warps=tile.warps,
            num_stages=stages(tile._replace(resident=resident), each, x.element_size(), x.device),
            enable_fp_fusion=False,
        )
    if shares > 1:
        split_sum(partial, None, out.as_strided((out.numel(),), (1,)))  # the bias is in the first share


def fit(x: Tensor, tokens: int, wide: bool) -> Tile:
    """Return the tile for some tokens; ``wide`` if the matrices are aligned."""
    tiles = usable(x.dtype, x.device, wide)
    if SPILLS:
        tiles = tiles[:1] if x.element_size() == 4 else (*tiles[:2], *([NARROW] if wide else []))
    tile = tile_for(tokens, tiles)
    # With four warps, float32 spills registers on sm_80.
    return tile._replace(warps=8) if x.element_size() == 4 and matmul.capability(x.device) == 8 else tile


def masked_convolution(
    x: Tensor, weight: Tensor, logits: Logits, bias: Tensor | None, *, mask: Mask, geometry: Sequence[int]
) -> Tensor | None:
    """As :class:`stochprune.backends.FusedConvolution`: with one or two dimensions and one group, where faster."""
    spatial, draws = weight.dim() - 2, len(mask.draw)
    if not weight.numel():  # no input channels
        return None
    stride, padding, dilation = ([*geometry[i * spatial : (i + 1) * spatial]] for i in range(3))
    transposed, groups = geometry[-2:]
    inner = -spatial - 2  # the examples of a draw: their elements have offsets of 32 bits
    extent = sum((size - 1) * step for size, step in zip(x.shape[inner:], x.stride()[inner:], strict=True))
    if spatial > 2 or transposed or groups > 1 or max(weight.shape[2:]) > LARGEST_KERNEL or extent >= 1 << 30:
        return None
    steps = zip(x.shape[-spatial:], weight.shape[2:], stride, padding, dilation, strict=True)
    sizes = [(size + 2 * pad - gap * (taps - 1) - 1) // step + 1 for size, taps, step, pad, gap in steps]
    shape = (*x.shape[: -spatial - 1], len(weight), *sizes)
    formed = cache.enabled or cache.find(logits) is not None
    route = choose(shape, x, weight, logits, mask, formed)
    if route == "prepass":
        return None
    weight = tiles.readable(weight)
    thresholds = cache.get(logits) if route == "thresholds" else None
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=result_format(x, weight, draws))
    images, out = (x, y) if draws > 1 else (x[None], y[None])
    filters, levels = weight, logits
    if spatial == 1:  # images of height 1
        images, out, filters, levels = (t.unsqueeze(-2) for t in (images, out, filters, levels))
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    sizes = (*stride, *padding, *dilation)
    masked_conv(images, filters, Logits(levels), bias, mask=mask, geometry=sizes, out=out, thresholds=thresholds)
    return y
