"""N:M masks: of every m neighbouring weights exactly n are kept.

Group g of a row has the columns ``m g .. m g + m - 1``. A pattern is a choice of n columns of a group. Its probability
is that of independent Bernoulli masks, given that n of them keep: it is proportional to ``exp(sum of the kept
logits)``. This is conditional Poisson sampling (Hajek 1964).

The contract of :mod:`stochprune.rng` decides for each weight on its own. It is extended to groups as follows::

    u        = all sixteen bits of uniform16 at the group's first column
    patterns = the n-subsets of 0 .. m-1 in lexicographic order of their kept columns
    C[i]     = floor((p[0] + ... + p[i]) * 65536 + 0.5),    C[last] = 65536
    pattern  = the first i with u < C[i]

So pattern i is sampled with probability ``(C[i] - C[i-1]) / 65536`` exactly. A pattern whose probability is below 2^-17
may never occur. m is 2, 4 or 8, which divides the 64 columns that the contract treats together. n is at most 4, so that
products of n odds stay in the range of float32.
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
"""Logits are clamped to [-LARGEST, LARGEST], so that infinite logits can be compared."""


def check(op: str, n: int, m: int, columns: int) -> None:
    """Raise ``ValueError`` unless n:m is a valid pattern and m divides the number of columns."""
    if m not in SIZES or not 1 <= n <= min(m - 1, MOST_KEPT):
        raise ValueError(f"{op}: n:m needs m of 2, 4 or 8 and n from 1 to m - 1 and at most 4, got {n}:{m}")
    if columns % m:
        raise ValueError(f"{op}: {m} does not divide the {columns} columns of a row")


def check_offset(op: str, m: int, col_offset: int) -> None:
    """Raise ``ValueError`` unless a shard whose first column is ``col_offset`` starts with a whole group."""
    if col_offset % m:
        raise ValueError(f"{op}: col_offset must be a multiple of {m}, the size of a group, got {col_offset}")


def parse(pattern: str, op: str = "") -> tuple[int, int]:
    """Return n and m of a text such as ``"2:4"``; error messages name the function ``op``."""
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
    """Return all patterns [P, m] in the contract's order, 1 for kept columns, in dtype and on device of ``like``."""
    return _kept(n, m).to(like)


def groups(matrix: Tensor, m: int) -> Tensor:
    """Return a matrix [N, K] as [N, K / m, m]."""
    return matrix.unflatten(-1, (matrix.shape[-1] // m, m))


def log_probabilities(logits: Tensor, n: int) -> Tensor:
    """Return ln p of every pattern [..., P] from the logits [..., m] of a group, in float32 or wider."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).clamp(-LARGEST, LARGEST)
    return torch.log_softmax(wide @ kept(n, logits.shape[-1], wide).mT, dim=-1)


def levels(logits: Tensor, n: int) -> Tensor:
    """Return the thresholds C, int64 [..., P], from the logits [..., m] of a group; the last one is 65536."""
    p = log_probabilities(logits.detach().double(), n).exp()
    c = torch.floor(p.cumsum(-1) * LEVELS + 0.5).long()
    c[..., -1] = LEVELS
    return c


def probabilities(logits: Tensor, n: int) -> Tensor:
    """Return the probabilities with which patterns are sampled, float64 [..., P], multiples of 1/65536."""
    c = levels(logits, n)
    return torch.diff(c, dim=-1, prepend=torch.zeros_like(c[..., :1])).double() / LEVELS


def mask(logits: Tensor, pattern: tuple[int, int], at: Mask) -> Tensor:
    """Return the mask [N, K] of one draw, 0 and 1 in float64."""
    if logits.isnan().any():
        raise ValueError("logits contain NaN")
    n, m = pattern
    u = at.uniform16(*logits.shape)[:, ::m]
    chosen = (u[..., None] >= levels(groups(logits, m), n)).sum(-1)  # [N, K / m]
    return kept(n, m, logits.double())[chosen].flatten(-2)


def inclusion(logits: Tensor, n: int, m: int) -> Tensor:
    """Return the probability [N, K] that each weight is kept, before quantisation, in float32 or wider."""
    p = log_probabilities(groups(logits, m), n).exp()
    return (p @ kept(n, m, p)).flatten(-2)


def inclusion_grad(grad: Tensor, logits: Tensor, n: int, m: int) -> Tensor:
    """Return grad times the Jacobian of :func:`inclusion`, [N, K].

    The Jacobian is the covariance within a group: ``d pi_i / d logit_j = P(i and j kept) - pi_i pi_j``.
    """
    p = log_probabilities(groups(logits, m), n).exp()
    table = kept(n, m, p)
    t = groups(grad.to(p.dtype), m) @ table.mT  # [..., P]: the sum over the columns that each pattern keeps
    centred = p * (t - (p * t).sum(-1, keepdim=True))
    return (centred @ table).flatten(-2)
