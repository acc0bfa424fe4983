"""keep_mask in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.native.arrays import array, key, rows_of


def keep_mask(threshold: Tensor, seed: Tensor, draw: Tensor, stream: int, row_offset: int, col_offset: int) -> Tensor:
    """As :func:`stochprune.reference.keep_mask`."""
    threshold = rows_of(threshold)
    mask = torch.empty(threshold.shape, dtype=torch.bool)
    address = key(seed, draw, stream, row_offset, col_offset)
    _C.keep_mask(address, tuple(mask.shape), array(threshold), array(mask), torch.get_num_threads())
    return mask
