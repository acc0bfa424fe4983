"""mask_bits: hard masks of a weight matrix as one bit a weight, a transient 16 times smaller than bf16 weights."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.products import Mask

from . import tiles
from .estimators import keep
from .philox import GROUP, load_key, uniforms
from .tiles import locate, offsets

WORD = tl.constexpr(32)


@triton.jit(do_not_specialize=["stream", "draws"])
def mask_bits_kernel(
    logits_ptr,
    bits_ptr,
    seed_ptr,
    draw_ptr,
    stream: tl.int32,
    draws,
    N,
    K,
    words,
    logits_row,
    logits_col,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    rows, cols, group = locate(tl.program_id(0) // draws, K, ROWS, GROUPS)  # neighbours share a tile
    inside = (rows < N)[:, None] & (cols < K)[None, :]
    logit = tl.load(logits_ptr + offsets(rows, cols, logits_row, logits_col), mask=inside, other=0.0).to(tl.float32)
    k0, k1 = load_key(seed_ptr)
    d = tl.program_id(0) % draws
    u = uniforms(rows, group, k0, k1, tl.load(draw_ptr + d), stream, GROUPS)
    bits_ptr += d.to(tl.int64) * N * words
    kept = keep(logit, u).to(tl.int32).reshape(ROWS, GROUPS * GROUP // WORD, WORD)
    bits = tl.sum(kept << tl.arange(0, WORD)[None, None, :], axis=2)  # each bit once, so the sum is their union
    at = group * (GROUP // WORD) + tl.arange(0, GROUPS * GROUP // WORD)
    tl.store(bits_ptr + offsets(rows, at, words, 1), bits, mask=(rows < N)[:, None] & (at < words)[None, :])


def mask_bits(logits: Tensor, mask: Mask) -> Tensor:
    """int32 [D, N, ceil(K / 32)]: bit k % 32 of word k // 32 says whether column k is kept under a draw."""
    N, K = logits.shape
    words = triton.cdiv(K, WORD.value)
    bits = torch.empty(len(mask.draw), N, words, dtype=torch.int32, device=logits.device)
    if bits.numel():
        with torch.cuda.device_of(logits):
            mask_bits_kernel[(tiles.count(N, K) * len(bits),)](
                logits,
                bits,
                mask.seed,
                mask.draw,
                mask.stream,
                len(bits),
                N,
                K,
                words,
                *logits.stride(),
                ROWS=tiles.ROWS,
                GROUPS=tiles.GROUPS,
                num_warps=tiles.WARPS,
                enable_fp_fusion=False,
            )
    return bits
