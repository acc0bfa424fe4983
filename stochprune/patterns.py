"""N:M masks: of every m neighbouring weights exactly n are kept, a pattern drawn as conditioned Bernoullis.

A group is the columns ``m g .. m g + m - 1`` of a row. A pattern has the probability of independent Bernoulli masks
given that n of them keep, proportional to ``exp(sum of the kept logits)``: conditional Poisson sampling (Hajek 1964).

The contract's masks (:mod:`stochprune.rng`) decide each weight apart; these extend it to groups::

    u        = all sixteen bits of uniform16 at the group's first column
    patterns = the n-subsets of 0 .. m-1 in lexicographic order of their kept columns
    C[i]     = floor((p[0] + ... + p[i]) * 65536 + 0.5),    C[last] = 65536
    pattern  = the first i with u < C[i]

so that pattern i has probability ``(C[i] - C[i-1]) / 65536`` exactly: this is the distribution that is sampled. A
pattern of probability below 2^-17 may never be drawn. m is 2, 4 or 8 and divides the 64 columns of a group of the
contract; n is at most 4, so that the kernels' products of n odds stay inside float32.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from stochprune.address import Mask

LEVELS = 1 << 16
SIZES = (2, 4, 8)
MOST_KEPT = 4
LARGEST = 1e6
"""Logits are clamped to this size: infinite ones stay comparable."""


def check(op: str, n: int, m: int, columns: int) -> None:
    """Raise ``ValueError`` unless n of m is a pattern and divides rows of this many columns."""
    if m not in SIZES or not 1 <= n <= min(m - 1, MOST_KEPT):
        raise ValueError(f"{op}: n:m needs m of 2, 4 or 8 and n from 1 to m - 1 and at most 4, got {n}:{m}")
    if columns % m:
        raise ValueError(f"{op}: {m} does not divide the {columns} columns of a row")


def parse(pattern: str, op: str = "") -> tuple[int, int]:
    """n and m of a text such as ``"2:4"``; ``op`` is the function that messages name."""
    name = f"{op}: pattern" if op else "a pattern"
    if not isinstance(pattern, str):
        raise TypeError(f"{name} is written n:m, such as '2:4', got {pattern!r}")
    n, colon, m = pattern.partition(":")
    if not (colon and n.isdecimal() and m.isdecimal()):
        raise ValueError(f"{name} is written n:m, such as 2:4, got {pattern!r}")
    return int(n), int(m)


@functools.cache
def _kept(n: int, m: int) -> Tensor:
    table = torch.zeros(0, m, dtype=torch.float64)
    for kept in itertools.combinations(range(m), n):
        row = torch.zeros(1, m, dtype=torch.float64)
        row[0, list(kept)] = 1
        table = torch.cat([table, row])
    return table


def kept(n: int, m: int, like: Tensor) -> Tensor:
    """[P, m]: 1 where pattern p keeps, in the order of the contract, in the dtype and on the device of ``like``."""
    return _kept(n, m).to(like)


def groups(matrix: Tensor, m: int) -> Tensor:
    """[N, K / m, m] of a matrix [N, K]."""
    return matrix.unflatten(-1, (matrix.shape[-1] // m, m))


def log_probabilities(logits: Tensor, n: int) -> Tensor:
    """ln p of every pattern [..., P] from the logits [..., m] of a group, in at least float32."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).clamp(-LARGEST, LARGEST)
    return torch.log_softmax(wide @ kept(n, logits.shape[-1], wide).mT, dim=-1)


def levels(logits: Tensor, n: int) -> Tensor:
    """The thresholds C, int64 [..., P], from the logits [..., m] of a group; the last is 65536."""
    p = log_probabilities(logits.detach().double(), n).exp()
    c = torch.floor(p.cumsum(-1) * LEVELS + 0.5).long()
    c[..., -1] = LEVELS
    return c


def probabilities(logits: Tensor, n: int) -> Tensor:
    """float64 [..., P]: the probabilities with which the patterns are drawn, multiples of 1/65536."""
    c = levels(logits, n)
    return torch.diff(c, dim=-1, prepend=torch.zeros_like(c[..., :1])).double() / LEVELS


def mask(logits: Tensor, pattern: tuple[int, int], at: Mask) -> Tensor:
    """The mask [N, K] that the contract draws at an address of one draw, as 0 and 1 in float64."""
    if logits.isnan().any():
        raise ValueError("logits contain NaN")
    n, m = pattern
    u = at.uniform16(*logits.shape)[:, ::m]
    chosen = (u[..., None] >= levels(groups(logits, m), n)).sum(-1)  # [N, K / m]
    return kept(n, m, logits.double())[chosen].flatten(-2)


def inclusion(logits: Tensor, n: int, m: int) -> Tensor:
    """The probability [N, K] of each weight to be kept, before it is quantised, in at least float32."""
    p = log_probabilities(groups(logits, m), n).exp()
    return (p @ kept(n, m, p)).flatten(-2)


def inclusion_grad(grad: Tensor, logits: Tensor, n: int, m: int) -> Tensor:
    """grad times the Jacobian of :func:`inclusion`: the covariance of the kept weights of a group, [N, K].

    ``d pi_i / d logit_j = P(i and j kept) - pi_i pi_j``.
    """
    p = log_probabilities(groups(logits, m), n).exp()
    table = kept(n, m, p)
    t = groups(grad.to(p.dtype), m) @ table.mT  # [..., P]: what each pattern collects
    centred = p * (t - (p * t).sum(-1, keepdim=True))
    return (centred @ table).flatten(-2)
