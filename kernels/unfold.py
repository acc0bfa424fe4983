"""Images as a convolution's matrix product reads them: in place, under the kernel positions, with zeros outside."""

from __future__ import annotations

import triton
import triton.language as tl

LARGEST_KERNEL = 15
"""Height and width of the largest kernel whose positions fit in the bits of :func:`edges`."""


@triton.jit
def located(m, height, width):
    """Return the image of each token, and its position in it, int64; ``m`` are int32."""
    row = m // width
    return (row // height).to(tl.int64), (row % height).to(tl.int64), (m % width).to(tl.int64)


@triton.jit
def edges(start, size, TAPS: tl.constexpr, GAP: tl.constexpr):
    """Return bits, int32: bit i is 1 where ``start + i * GAP`` lies outside 0 .. size - 1."""
    bits = tl.zeros(start.shape, tl.int32)
    for i in tl.static_range(TAPS):
        at = start + i * GAP
        bits |= tl.where((at >= 0) & (at < size), 0, 1 << i)
    return bits


@triton.jit
def taps(
    r, K, x_channel, x_y, x_x, POSITIONS: tl.constexpr, WIDTH: tl.constexpr, DOWN: tl.constexpr, RIGHT: tl.constexpr
):
    """Return the offsets in x of the columns ``r`` of a filter, and their bits of :func:`edges`.

    The kernel positions lie DOWN and RIGHT apart, WIDTH of them in a row. The low half of the bits is for rows.
    """
    y, x = r % POSITIONS // WIDTH, r % POSITIONS % WIDTH
    at = (r // POSITIONS).to(tl.int64) * x_channel + (y * DOWN).to(tl.int64) * x_y + (x * RIGHT).to(tl.int64) * x_x
    bits = (1 << y) | (0x10000 << x)
    return at.to(tl.int32), tl.where(r < K, bits, 0x8000)


@triton.jit
def interleaved(parts):
    """Return [R, C * P] of P tiles [R, C]: column j is column j // P of tile j % P."""
    R: tl.constexpr = parts[0].shape[0]
    C: tl.constexpr = parts[0].shape[1]
    if len(parts) == 1:
        return parts[0]
    elif len(parts) == 2:
        return tl.join(parts[0], parts[1]).reshape(R, 2 * C)
    else:
        return tl.join(tl.join(parts[0], parts[2]), tl.join(parts[1], parts[3])).reshape(R, 4 * C)
