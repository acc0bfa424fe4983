"""keep_mask: the hard mask itself, for inspection; training never forms it."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import backends, rng
from stochprune.functional._address import Address
from stochprune.functional._checks import check_tensor, check_values


def keep_mask(
    threshold: Tensor, *, seed: int | Tensor, draw: int | Tensor, stream: int, row_offset: int = 0, col_offset: int = 0
) -> Tensor:
    """Return which weights are kept: ``(uniform16 & 0x7FFF) < threshold`` at each weight's address.

    Args:
        threshold: uint16 [N, K], 0 .. 32768, the keep probabilities in units of 2^-15
            (see :func:`stochprune.rng.threshold_from_logits`).
        seed: 0 .. 2^64 - 1, or a one-element int64 tensor with those bits.
        draw: 0 .. 2^32 - 1, or a one-element int64 tensor.
        stream: 0 .. 2^31 - 1, the number of the layer.
        row_offset, col_offset: global position of ``threshold[0, 0]`` if it is a shard.

    Returns:
        bool [N, K] on the threshold's device.

    Raises:
        TypeError: ``threshold`` is not an integer tensor.
        ValueError: it is not a matrix, has a value outside 0 .. 32768, or an integer is outside the contract's range.
    """
    check_tensor("keep_mask", "threshold", threshold)
    check_values("keep_mask", threshold=threshold)
    if threshold.dtype not in (torch.uint16, torch.int32, torch.int64):
        raise TypeError(f"keep_mask: threshold must be uint16, got {threshold.dtype}")
    if threshold.dim() != 2:
        raise ValueError(f"keep_mask: threshold must be a matrix [N, K], got shape {tuple(threshold.shape)}")
    at = Address(seed, draw, stream, row_offset=row_offset, col_offset=col_offset)
    mask = at.one_draw("keep_mask", threshold.device, *threshold.shape)
    if threshold.dtype == torch.uint16:
        bits = threshold.view(torch.int16)  # 32768 becomes the lowest number, larger values other negative ones
        outside = (bits < 0) & (bits != -rng.LEVELS)
    else:
        outside = (threshold < 0) | (threshold > rng.LEVELS)
    if outside.any():
        raise ValueError(f"keep_mask: thresholds must lie in 0 .. {rng.LEVELS}, got {int(threshold[outside][0])}")
    threshold = threshold.to(torch.uint16)
    return backends.resolve(threshold).keep_mask(threshold, mask=mask)
