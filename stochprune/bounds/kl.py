"""The KL divergence between two Bernoulli distributions, and its inverse rounded outward."""

from __future__ import annotations

import math
import sys
from typing import Any, overload

import torch
from torch import Tensor

from stochprune.bounds.checks import check

_MARGIN = 2.0**-44
"""Relative margin: :func:`kl` is exact to about ten roundings of 2^-53, so a value lowered by it is below the exact
value."""


def kl(q: float, p: float) -> float:
    """Return kl(q || p) = q ln(q / p) + (1 - q) ln((1 - q) / (1 - p)), in nats; infinite if p is 0 or 1 and q is not.

    With d = p - q and f(x) = x - ln(1 + x) >= 0 it is computed as q f(d / q) + (1 - q) f(-d / (1 - q)). No terms
    cancel, and the relative error stays below 1e-14 for all q and p, however close they are.

    Raises:
        ValueError: an argument outside [0, 1].
    """
    q, p = check("kl", q=q, p=p)
    return _kl(float(q), float(p))


def _kl(q: float, p: float) -> float:
    if q == p:
        return 0.0
    if (p == 0 and q > 0) or (p == 1 and q < 1):
        return math.inf
    return _half(q, p, p - q) + _half(1 - q, 1 - p, q - p)


def _half(a: float, b: float, d: float) -> float:
    """Return a f(d / a) with d = b - a and f(x) = x - ln(1 + x); d if a is 0."""
    if a == 0:
        return d
    x = d / a
    if abs(x) > 0.5:
        ratio = b / a
        precise = 1e-290 < ratio < 1e290  # else it overflows, or loses digits below the normal numbers
        return d - a * (math.log(ratio) if precise else math.log(b) - math.log(a))
    # ln(1 + x) = 2 atanh(s) with s = x / (2 + x), and 2 s = x - x s
    s = x / (2 + x)
    square, power, total = s * s, s, 0.0
    for odd in range(3, 41, 2):
        power *= square
        total += power / odd
        if abs(power) <= 1e-18 * abs(total):
            break
    return a * (x * s - 2 * total)


@overload
def kl_inverse(q: float, c: float) -> float: ...
@overload
def kl_inverse(q: Tensor, c: Tensor | float) -> Tensor: ...
@overload
def kl_inverse(q: float, c: Tensor) -> Tensor: ...
def kl_inverse(q: float | Tensor, c: float | Tensor) -> float | Tensor:
    """Return sup {p in [q, 1] : kl(q || p) <= c}, rounded outward.

    The result is never below the supremum; the kl at it is above c by a relative 1e-13 at most. The result p satisfies
    kl(q || p) >= c in exact arithmetic, or is 1: it is the upper end of a bracket whose ends are neighbouring
    floating-point numbers.

    Args:
        q: in [0, 1].
        c: at least 0, in nats. If either argument is a tensor of one element, the result is a float64 tensor. Its
            gradient is that of the implicit function: dp/dc = 1 / kl_p, dp/dq = -kl_q / kl_p with
            kl_p = (p - q) / (p (1 - p)) and kl_q = ln(q (1 - p) / (p (1 - q))); 0 where p is 1. At q = 0 the slope
            dp/dq is infinite; the slope at the smallest normal number replaces it, so that the chain rule never
            multiplies 0 by infinity.

    Raises:
        ValueError: q outside [0, 1]; c negative or NaN.
    """
    q, c = check("kl_inverse", q=q, c=c)
    if isinstance(q, Tensor) or isinstance(c, Tensor):
        return _Inverse.apply(torch.as_tensor(q, dtype=torch.float64), torch.as_tensor(c, dtype=torch.float64))
    return _inverse(q, c)


def _inverse(q: float, c: float) -> float:
    low, high = q, 1.0
    while low < (middle := low + (high - low) / 2) < high:
        if _kl(q, middle) * (1 - _MARGIN) > c:
            high = middle
        else:
            low = middle
    return high


class _Inverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, c: Tensor) -> Tensor:
        p = torch.full_like(q + c, _inverse(q.item(), c.item()))
        ctx.save_for_backward(q, p)
        return p

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        q, p = (tensor.item() for tensor in ctx.saved_tensors)
        if p >= 1:
            return torch.zeros_like(grad), torch.zeros_like(grad)
        along_p = (p - q) / (p * (1 - p))
        along_q = math.log(max(q, sys.float_info.min) / p) + math.log((1 - p) / (1 - q))
        return grad * (-along_q / along_p), grad / along_p
