"""The product with sparse rows in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.sparse_rows import SparseRows


def sparse_linear(x: Tensor, rows: SparseRows, bias: Tensor | None) -> Tensor:
    """As :func:`stochprune.sparse_rows.sparse_linear`, in float32."""
    y = torch.empty(x.shape[0], rows.first.shape[0] - 1)
    _C.sparse_linear(x, *rows, bias, y, torch.get_num_threads())
    return y
