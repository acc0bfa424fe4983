"""Sparse matrices that store only the kept weights of each row, and their product in plain PyTorch.

A matrix [N, K] is three tensors: ``values`` holds the kept weights, row after row; ``columns`` holds the column of each
value; ``first`` holds the index of each row's first value. This is the CSR format with 16-bit columns. It takes six
bytes for each kept weight in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

WIDEST = 1 << 16
"""The largest number of columns that 16-bit numbers can distinguish."""


class SparseRows(NamedTuple):
    """The kept weights of a matrix [N, K].

    Attributes:
        values: [kept], floating, row after row.
        columns: uint16 [kept], the column of each value, increasing within a row.
        first: int64 [N + 1], the index of the first value of each row, then the number of values.
    """

    values: Tensor
    columns: Tensor
    first: Tensor


def pack(weight: Tensor) -> SparseRows:
    """Return the weights of a matrix [N, K] that are not 0, K at most 65536; NaN is kept, -0 is not."""
    kept = weight != 0
    first = torch.zeros(len(weight) + 1, dtype=torch.int64, device=weight.device)
    torch.cumsum(kept.sum(1), 0, out=first[1:])
    return SparseRows(weight[kept], kept.nonzero()[:, 1].to(torch.uint16), first)


def unpack(rows: SparseRows, columns: int) -> Tensor:
    """Return the matrix [N, columns] of some rows, with +0 where nothing is kept."""
    weight = rows.values.new_zeros(len(rows.first) - 1, columns)
    weight[_row_of_each(rows), rows.columns.long()] = rows.values
    return weight


def why_invalid(rows: SparseRows, columns: int) -> str | None:
    """Return why three tensors are not the rows of a matrix with so many columns; None if they are.

    A product reads x at ``columns`` without a check, so a file must pass this one first.
    """
    values, at, first = rows
    if first.dtype != torch.int64 or first.dim() != 1 or not len(first):
        return f"first must be int64 [rows + 1], got {first.dtype} {tuple(first.shape)}"
    if at.dtype != torch.uint16 or at.dim() != 1 or values.shape != at.shape:
        got = f"{at.dtype} {tuple(at.shape)} and {tuple(values.shape)}"
        return f"columns and values must be uint16 and floating, both [kept], got {got}"
    if int(first[0]) or int(first[-1]) != len(at) or bool((first.diff() < 0).any()):
        return f"first must rise from 0 to the {len(at)} kept weights"
    if len(at) and int(at.int().max()) >= columns:
        return f"columns must lie below {columns}, got {int(at.int().max())}"
    steps = at.int().diff()
    inside = torch.ones_like(steps, dtype=torch.bool)
    starts = first[1:-1]
    inside[starts[(starts > 0) & (starts < len(at))] - 1] = False  # columns may decrease from one row to the next
    if bool((steps[inside] <= 0).any()):
        return "the columns of a row must rise"
    return None


def sparse_linear(x: Tensor, rows: SparseRows, bias: Tensor | None) -> Tensor:
    """Return y [M, N] of x [M, K], sparse rows of a matrix [N, K] and bias [N]; pruned weights read nothing of x."""
    at = torch.stack([_row_of_each(rows), rows.columns.long()])
    shape = (len(rows.first) - 1, x.shape[1])
    weight = torch.sparse_coo_tensor(at, rows.values, shape, is_coalesced=True, check_invariants=False)
    y = torch.sparse.mm(weight, x.mT).mT.contiguous()
    return y if bias is None else y + bias


def _row_of_each(rows: SparseRows) -> Tensor:
    return torch.repeat_interleave(rows.first.diff())
