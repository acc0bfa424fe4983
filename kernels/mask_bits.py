"""mask_bits: hard masks of a weight matrix, one bit per weight, in temporary memory: a 16th of bf16 weights."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import Logits, Mask

from . import tiles
from .estimators import keep
from .philox import GROUP, load_key, uniforms
from .tiles import after, load, locate, offsets, within

WORD = tl.constexpr(32)


@triton.jit(do_not_specialize=["stream", "first_row", "first_group", "draws"])
def mask_bits_kernel(
    logits_ptr,
    bits_ptr,
    seed_ptr,
    draw_ptr,
    stream: tl.int32,
    first_row,
    first_group,
    draws,
    N,
    K,
    words,
    logits_row,
    logits_col,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    rows, cols, group = locate(tl.program_id(0) // draws, K, None, ROWS, GROUPS)  # neighbouring programs share a tile
    inside = within(rows, cols, N, K, None)
    logit = load(logits_ptr, offsets(rows, cols, logits_row, logits_col), inside)
    k0, k1 = load_key(seed_ptr)
    d = tl.program_id(0) % draws
    draw = tl.load(draw_ptr + d)
    u = uniforms(after(rows, first_row), after(group, first_group), k0, k1, draw, stream, GROUPS)
    bits_ptr += d.to(tl.int64) * N * words
    kept = keep(logit, u).to(tl.int32).reshape(ROWS, GROUPS * GROUP // WORD, WORD)
    bits = tl.sum(kept << tl.arange(0, WORD)[None, None, :], axis=2)  # each bit occurs once, so the sum is their union
    at = group * (GROUP // WORD) + tl.arange(0, GROUPS * GROUP // WORD)
    tl.store(bits_ptr + offsets(rows, at, words, 1), bits, mask=(rows < N)[:, None] & (at < words)[None, :])


def mask_bits(logits: Logits, *, mask: Mask) -> Tensor:
    """Return the masks of all draws, int32 [D, N, ceil(K / 32)]: bit k % 32 of word k // 32 is 1 if column k is kept.

    ``mask.col`` must be a multiple of 64.
    """
    N, K = logits.shape
    words = triton.cdiv(K, WORD.value)
    bits = torch.empty(len(mask.draw), N, words, dtype=torch.int32, device=logits.device)
    if bits.numel():
        with torch.cuda.device_of(logits):
            mask_bits_kernel[tiles.grid(mask, N, K, draws=len(bits))](
                logits,
                bits,
                *tiles.address(mask),
                len(bits),
                N,
                K,
                words,
                *logits.stride(),
                ROWS=tiles.ROWS,
                **tiles.LAUNCH,
            )
    return bits
