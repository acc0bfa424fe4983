"""Proved lower and upper bounds on the spectral norm of a matrix."""

from __future__ import annotations

import math

import numpy as np

from stochprune.seeding import generator

UNIT = 2.0**-53
"""Unit roundoff of float64."""


def norm_lower(matrix: np.ndarray, iterations: int = 300, seed: int = 0) -> float:
    """Return a lower bound on |A|_2 by power iteration on A^T A from a random start: |A v| / |v| for the last v.

    The result is rounded down by the error of its own arithmetic, so it is never above |A|_2 and usually close.
    """
    a, scale = _scaled(matrix)
    if not a.any():
        return 0.0
    v = np.asarray(generator(seed, "power iteration", *a.shape).standard_normal(a.shape[1]))
    for _ in range(iterations):
        v = a.T @ (a @ v)
        v = v / np.linalg.norm(v)
    slack = _gamma(a.shape[1]) * float(np.linalg.norm(np.abs(a) @ np.abs(v)))  # rounding of A v, summed in any order
    ratio = (float(np.linalg.norm(a @ v)) - slack) / float(np.linalg.norm(v))
    return max(0.0, ratio * (1 - 2 * _gamma(max(a.shape) + 2))) / scale


def norm_upper(matrix: np.ndarray) -> float:
    """Return an upper bound on |A|_2 that holds in exact arithmetic.

    It exceeds |A|_2 by about twice the error of power iteration. For G = A^T A (or A A^T, the smaller) and a candidate
    t, the matrix B = t I - G is factorised by Cholesky in float64. If the factorisation succeeds, it has found R with
    R^T R = B + E, |E| <= g / (1 - g) tr B in norm, where g = gamma(k + 1) for the order k (Higham 2002, "Accuracy and
    stability of numerical algorithms", theorem 10.3, with |R|_F^2 <= tr B / (1 - g)). So B has no eigenvalue below
    -g / (1 - g) tr B, and

        |A|_2^2 <= t + g / (1 - g) tr B + gamma(m) |A|_F^2 + 2 u t.

    The last two terms cover the rounding of G (m products per sum, in any order, with or without fused operations) and
    of the subtraction. t starts just above the result of power iteration and grows until the factorisation succeeds.
    Overflow and underflow are avoided by an exact scaling with a power of 2. (Rump 2006, "Verification of positive
    definiteness", proves definiteness in the same way.)

    Raises:
        ValueError: the argument is not a matrix, or has values that are not finite.
    """
    a, scale = _scaled(matrix)
    if not a.any():
        return 0.0
    if a.shape[0] < a.shape[1]:
        a = a.T
    m, k = a.shape
    gram = a.T @ a  # [k, k]
    frobenius = float(np.square(a).sum()) * (1 + _gamma(m * k + 1))
    g, excess = _gamma(k + 1), 2.0**-30
    start = max(norm_lower(a) ** 2, float(gram.diagonal().max()))
    while True:
        t = start * (1 + excess)
        shifted = -gram
        shifted[np.diag_indices(k)] += t
        try:
            np.linalg.cholesky(shifted)
        except np.linalg.LinAlgError:
            excess *= 2
            continue
        trace = k * t  # of B, at most
        square = t + g / (1 - g) * trace + _gamma(m) * frobenius + 2 * UNIT * t
        return math.sqrt(square) * (1 + 8 * UNIT) / scale


def _gamma(n: int) -> float:
    return n * UNIT / (1 - n * UNIT)


def _scaled(matrix: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the matrix in float64 times a power of 2 that brings its largest entry to 1/2 .. 1, and that power.

    The power is limited, so a matrix of subnormal entries stays small.
    """
    a = np.asarray(matrix, dtype=np.float64)
    if a.ndim != 2 or not np.isfinite(a).all():
        raise ValueError(f"the spectral norm needs a matrix of finite numbers, got shape {a.shape}")
    scale = 2.0 ** min(1023, -math.frexp(float(np.abs(a).max(initial=0.0)))[1])
    return a * scale, scale
