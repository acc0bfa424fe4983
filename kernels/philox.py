"""The mask contract as Triton device functions: the only file of the kernels that generates random bits.

One 32-bit Philox word serves two neighbouring columns, and one Philox call serves eight weights. In a group of 64
columns::

    word s of call j serves the columns 16s + 2j (low half) and 16s + 2j + 1 (high half)

So the four words of the eight calls, transposed, are the pairs in column order. Salmon, Moraes, Dror and Shaw 2011,
"Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(64)
"""Number of columns in a group: those of eight Philox calls."""


@triton.jit
def _round(c0, c1, c2, c3, k0, k1):
    # One wide product each: separate high and low products would be two instructions.
    p0 = c0.to(tl.uint64) * 0xD2511F53
    p1 = c2.to(tl.uint64) * 0xCD9E8D57
    high0, low0 = (p0 >> 32).to(tl.uint32), p0.to(tl.uint32)
    high1, low1 = (p1 >> 32).to(tl.uint32), p1.to(tl.uint32)
    return high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0


@triton.jit
def philox(c0, c1, c2, c3, k0, k1, ROUNDS: tl.constexpr = 7):
    """Return the four words of Philox-4x32 on uint32 counters, which are broadcast together."""
    for i in tl.static_range(ROUNDS):
        if i > 0:
            k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    return c0, c1, c2, c3


@triton.jit
def load_key(seed_ptr):
    """Return the low and high 32 bits of the seed, a uint64 whose bits are stored as an int64 in device memory."""
    seed = tl.load(seed_ptr).to(tl.uint64, bitcast=True)
    return seed.to(tl.uint32), (seed >> 32).to(tl.uint32)


@triton.jit
def uniform_pairs(rows, group, k0, k1, draw, stream, GROUPS: tl.constexpr):
    """Return the uniforms of a tile, two of 16 bits in a word; the low half is the even column.

    Args:
        rows: [R] global rows.
        group: global index of the first 64-column group, ``column >> 6`` (scalar).
        k0, k1: the key, from :func:`load_key`.
        draw, stream: scalars.
        GROUPS: number of groups, a power of two.

    Returns:
        uint32 [R, 32 * GROUPS].
    """
    R: tl.constexpr = rows.shape[0]
    call = (tl.arange(0, 8 * GROUPS) + group * 8).to(tl.uint32)[None, :]
    row = rows.to(tl.uint32)[:, None]
    # Not broadcast here: the first rounds depend on the row alone or on the call alone.
    w0, w1, w2, w3 = philox(call, row, draw.to(tl.uint32), stream.to(tl.uint32), k0, k1)  # each [R, 8 * GROUPS]
    # With this order of joins the words stay in the registers in which they were computed, up to the tensor cores.
    words = tl.join(tl.join(w0, w1), tl.join(w2, w3)).reshape(R, GROUPS, 8, 2, 2)  # word s at [.., s & 1, s >> 1]
    return words.permute(0, 1, 4, 3, 2).reshape(R, 32 * GROUPS)


@triton.jit
def uniforms(rows, group, k0, k1, draw, stream, GROUPS: tl.constexpr):
    """Return the uniforms of a tile, uint32 [R, 64 * GROUPS] in 0 .. 65535; arguments as for :func:`uniform_pairs`."""
    return singles(uniform_pairs(rows, group, k0, k1, draw, stream, GROUPS))


@triton.jit
def singles(pairs):
    """Return pairs of uniforms, uint32 [R, C / 2], as the uniforms of single columns, uint32 [R, C]."""
    return tl.join(pairs & 0xFFFF, pairs >> 16).reshape(pairs.shape[0], 2 * pairs.shape[1])
