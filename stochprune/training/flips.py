"""Flips: how many weights changed their side of one half, and the warning where none does."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune.nn.layer import MaskedLayer
from stochprune.shards import local_shard, reduced

_PLAIN = (Tensor, nn.Parameter)
_ONES = torch.tensor([bin(byte).count("1") for byte in range(256)])  # set bits of each byte
PATIENCE = 10
"""The number of further epochs without a flip that cause no warning, if the length of the training is unknown."""


class StuckMaskWarning(UserWarning):
    """The mask does not change: the logits move too slowly to cross 0, which is a keep probability of one half."""


class Flips:
    """Counts the weights whose keep probability has crossed one half since the start.

    Attributes:
        kept: by layer, which weights were kept at the start: one bit each, see :func:`packed`; bool tensors like the
            logits where these are sharded.
    """

    def __init__(self, layers: Sequence[MaskedLayer]) -> None:
        self.layers = layers
        self.kept = self._now()
        self._nearest = self._distance()
        self._warned = False

    def count(self) -> int:
        """Return the number of weights that are not on the side where they started."""
        pairs = [(new, old.to(new.device)) for new, old in zip(self._now(), self.kept, strict=True)]
        return sum(int(reduced(_ones(local_shard(new ^ old).tensor).sum(), new)) for new, old in pairs)

    def _now(self) -> list[Tensor]:
        return [packed(layer.mask_logits.detach() >= 0) for layer in self.layers]

    def end_epoch(self, epochs_left: int | None, logit_lr: float | None) -> None:
        """Warn once if no weight has flipped, and none will in the epochs that are left at the pace of the last one.

        Args:
            epochs_left: None if it is not known; then ten epochs.
            logit_lr: the learning rate of the logits, for the message.
        """
        needed, left = self._nearest, self._distance()
        self._nearest = left
        moved = needed - left
        patience = PATIENCE if epochs_left is None else epochs_left
        if self._warned or needed == 0 or moved * patience >= left or self.count():
            return
        self._warned = True
        if moved < 1e-6 * needed:
            advice = "raise logit_lr, and check that the optimiser has the logits (stochprune.parameter_groups)"
        elif logit_lr is None:
            advice = f"raise the learning rate of the logits by a factor of about {needed / moved:.0f}"
        else:
            advice = f"raise logit_lr from {logit_lr:.2g} to about {logit_lr * needed / moved:.2g}"
        warnings.warn(
            f"no weight changed its side of 0.5 in the last epoch; the nearest logit moved by {moved:.2g} of the "
            f"{needed:.2g} it needs; {advice}",
            StuckMaskWarning,
            stacklevel=3,
        )

    def _distance(self) -> float:
        """Return the distance of the nearest logit from 0; 0 if no layer's mask is decided by its sign (N:M masks)."""
        nearest = [
            reduced(_smallest(local_shard(layer.mask_logits.detach()).tensor), layer.mask_logits, dist.ReduceOp.MIN)
            for layer in self.layers
            if not layer.own_sparsity and layer.mask_logits.numel()
        ]
        return min((value.item() for value in nearest), default=0.0)


def _smallest(part: Tensor) -> Tensor:
    """Return the smallest absolute value; infinity of an empty part."""
    return part.abs().min() if part.numel() else part.new_full((), math.inf)


def packed(kept: Tensor) -> Tensor:
    """Return bools as bytes uint8 [ceil(n / 8)], the first in the lowest bit; other tensors and shards as they are."""
    if kept.dtype != torch.bool or type(kept) not in _PLAIN:
        return kept
    bits = F.pad(kept.flatten().byte(), (0, -kept.numel() % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=kept.device)).sum(1, dtype=torch.uint8)


def _ones(values: Tensor) -> Tensor:
    """Return the number of set bits of each byte; bools as they are."""
    return values if values.dtype == torch.bool else _ONES.to(values.device)[values.int()]
