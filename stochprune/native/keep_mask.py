"""keep_mask in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.address import Mask


def keep_mask(threshold: Tensor, *, mask: Mask) -> Tensor:
    """As :func:`stochprune.reference.keep_mask`."""
    keep = torch.empty(threshold.shape, dtype=torch.bool)
    _C.keep_mask(_C.Masked(mask, threshold=threshold), keep, torch.get_num_threads())
    return keep
