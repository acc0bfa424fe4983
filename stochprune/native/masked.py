"""One weight under its masks, as the compiled kernels see it."""

from __future__ import annotations

from torch import Tensor

from stochprune import _C
from stochprune.address import Logits, Mask
from stochprune.native.thresholds import cache


def masked(weight: Tensor, logits: Logits, mask: Mask, rows: Tensor | None = None) -> _C.Masked:
    """Return the description of weight and logits [N, ...] under ``mask``, of all rows or of ``rows`` (int64 [R]).

    Trailing dimensions are flattened to columns.
    """
    hard = cache.enabled and mask.estimator.startswith("straight_through")
    threshold = cache.get(logits) if hard else None
    return _C.Masked(mask, weight=weight, logits=logits, threshold=threshold, rows=rows)
