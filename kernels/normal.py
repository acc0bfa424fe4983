"""The contract's standard normals as Triton device functions: Box and Muller 1958 on the words of :mod:`.philox`.

Logarithm, sine and cosine are polynomials of exact remainders. So the normals agree with the reference to 1e-6
relative; with the fast instructions of the GPU they would not.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import uniform_pairs


@triton.jit
def logarithm(x):
    """Return ln(x) of positive normal numbers in fp32, with a relative error below 2e-7 up to x = 1."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    n = exponent.to(tl.float32)
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    z = f * f
    p = f * 7.0376836292e-2 - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    return n * 0.693359375 + (f + (p * f * z - 0.5 * z - n * 2.12194440e-4))


@triton.jit
def _box_muller(w0, w1):
    p = ((w0 >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-7  # 2^-23: exact
    radius = tl.sqrt_rn(-2.0 * logarithm(p))
    turn = (w1 >> 9).to(tl.int32)
    quarter = (turn + (1 << 20)) >> 21
    a = ((turn - (quarter << 21)).to(tl.float32) + 0.5) * 7.4901405658478e-7  # 2 pi / 2^23
    z = a * a
    sine = ((z * -1.9515295891e-4 + 8.3321608736e-3) * z - 1.6666654611e-1) * z * a + a
    cosine = ((z * 2.443315711809948e-5 - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
    even = radius * tl.where((quarter & 1) != 0, sine, cosine)
    odd = radius * tl.where((quarter & 1) != 0, cosine, sine)
    return tl.where(((quarter + 1) & 2) != 0, -even, even), tl.where((quarter & 2) != 0, -odd, odd)


@triton.jit
def normals(rows, group, k0, k1, draw, stream, GROUPS: tl.constexpr):
    """Return the normals of a tile, fp32 [R, 64 * GROUPS]; arguments as for :func:`.philox.uniforms`."""
    R: tl.constexpr = rows.shape[0]
    # Calls 0..7 and 8..15 of a group are the calls of two groups of masks in another stream.
    words = uniform_pairs(rows, group * 2, k0, k1, draw, stream.to(tl.uint32) | 0x80000000, 2 * GROUPS)
    words = words.reshape(R, GROUPS, 2, 2, 2, 8).permute(0, 1, 2, 5, 3, 4)  # [R, group, half, call, pair, word]
    w0, w1 = tl.split(words.reshape(R, GROUPS, 16, 2, 2))  # each [R, group, call, pair]
    even, odd = _box_muller(w0, w1)
    return tl.join(even, odd).permute(0, 1, 3, 4, 2).reshape(R, 64 * GROUPS)
