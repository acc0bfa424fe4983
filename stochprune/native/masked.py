"""Weights and their masks as the compiled kernels take them."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.address import Logits, Mask
from stochprune.materialised import readable
from stochprune.native.thresholds import cache, threshold_from_logits
from stochprune.native.workspace import workspace

SHARED = 6
"""From as many draws on, the draws of a call share thresholds, which are formed once (AVX2, ns per weight: forming 2.2,
then 0.9 instead of 1.3 for each draw)."""


def masked(
    weight: Tensor, logits: Logits, mask: Mask, rows: Tensor | None = None, threshold: Tensor | None = None
) -> _C.Masked:
    """Return the description of weight and logits [N, ...] under ``mask``, of all rows or of ``rows`` (int64 [R]).

    Trailing dimensions are flattened to columns. ``threshold``: those of hard masks, from :func:`shared_thresholds`.
    """
    if threshold is None and (cache.enabled or mask.draw.shape[0] >= SHARED):
        threshold = shared_thresholds(logits, mask, rows)
    if weight.dtype is torch.float8_e4m3fn:  # here, because a call takes time in every layer
        weight = readable(weight)
    return _C.Masked(mask, weight, logits, threshold, rows)  # names of arguments would cost as much as the rest


def shared_thresholds(logits: Logits, mask: Mask, rows: Tensor | None = None) -> Tensor | None:
    """Return the thresholds of ``logits``, uint16, if many hard masks use them or the cache is on; else None."""
    if not mask.estimator.startswith("straight_through"):
        return None
    if cache.enabled:
        return cache.get(logits)
    return threshold_from_logits(logits) if rows is None and mask.draw.shape[0] >= SHARED else None


def write_masked_weight(
    layer: _C.Masked,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    keep_bits: bool = False,
    part: tuple[int, int] | None = None,
) -> tuple[Tensor, _C.Bits | None]:
    """Write z * weight to the shared workspace.

    Args:
        layer: weight, logits and masks.
        shape, dtype: of the result.
        keep_bits: return hard masks as bits too, for the backward pass.
        part: the first row and the number of rows; default: all rows.

    Returns:
        z * weight, valid until the workspace is used again, and the bits; None if they are not wanted, or if the mask
        is soft.
    """
    out = workspace.take(shape, dtype)
    return out, _C.masked_weight(layer, out, keep_bits, torch.get_num_threads(), part)
