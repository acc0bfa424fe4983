"""Hard masks of two neighbouring weights at once, in the halves of a word.

The raised thresholds ``0x7FFF + T`` of two columns and their uniforms are subtracted as one word. No half borrows from
the other, and the sign bit of each half of the difference is 1 exactly where that weight is kept.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .estimators import INTERPRETED, hard, masked, raised_threshold
from .philox import singles

RAISED = tl.constexpr(0x7FFF7FFF)
"""0x7FFF in both halves."""


@triton.jit
def halves(low, high):
    """Return ``low | high << 16`` of words whose upper halves are ignored."""
    return (low & 0xFFFF) | (high << 16)


@triton.jit
def columns(words):
    """Return the even and the odd columns of uint32 [R, C], [R, C / 2] each."""
    return tl.split(words.reshape(words.shape[0], words.shape[1] // 2, 2))


@triton.jit
def pack(a):
    """Return a tile [R, C] of 16-bit elements as uint32 [R, C / 2]; the low half is the even column."""
    low, high = columns(a.to(tl.uint16, bitcast=True).to(tl.uint32))
    return halves(low, high)


@triton.jit
def unpack(words, DTYPE: tl.constexpr):
    """Return uint32 [R, C / 2] as a tile [R, C] of elements of a 16-bit dtype."""
    low = (words & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True)
    high = (words >> 16).to(tl.uint16).to(DTYPE, bitcast=True)
    return tl.join(low, high).reshape(words.shape[0], words.shape[1] * 2)


@triton.jit
def raised_pairs(logit):
    """Return the raised thresholds of fp32 logits [R, C], uint32 [R, C / 2]."""
    # The low 16 bits of 256 + T / 32768 in fp32 are T.
    low, high = columns(raised_threshold(logit).to(tl.uint32, bitcast=True))
    return halves(low, high) + RAISED


@triton.jit
def kept(raised, uniforms):
    """Return 0xFFFF in each half that is kept, from pairs of raised thresholds and of uniforms, uint32 [R, C / 2]."""
    difference = raised - (uniforms & RAISED)
    if INTERPRETED:
        return ((difference >> 15) & 0x00010001) * 0xFFFF
    else:
        # Each byte of the result repeats the sign bit of the upper byte of its half.
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, 0, 0xBB99;", "=r,r", [difference], dtype=tl.uint32, is_pure=True, pack=1
        )


@triton.jit
def masked_pairs(w, raised, uniforms):
    """Return ``m * w`` for weights [R, C] of 16 or 32 bits; the other arguments as for :func:`kept`."""
    keep = kept(raised, uniforms)
    if w.dtype.primitive_bitwidth == 16:
        return unpack(pack(w) & keep, w.dtype)
    else:
        return tl.where(unpack(keep, tl.int16) != 0, w, 0.0)


@triton.jit
def masked_tile(a, logit, pairs, temperature, ESTIMATOR: tl.constexpr, DTYPE: tl.constexpr):
    """Return ``z * a`` [R, C] in ``DTYPE``, from fp32 logits [R, C] and pairs of uniforms, uint32 [R, C / 2]."""
    if hard(ESTIMATOR):
        return masked_pairs(a.to(DTYPE), raised_pairs(logit), pairs)
    else:
        return masked(a.to(tl.float32), logit, singles(pairs), temperature, ESTIMATOR).to(DTYPE)
