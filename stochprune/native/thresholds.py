"""Thresholds of logits in C++, exact, and their optional cache."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from stochprune import _C
from stochprune.native.arrays import array, rows_of


def threshold_from_logits(logits: Tensor) -> Tensor:
    """As :func:`stochprune.reference.threshold_from_logits`."""
    flat = rows_of(logits.detach().reshape(-1, logits.shape[-1]) if logits.dim() else logits.detach().reshape(1, 1))
    out = torch.empty(flat.shape, dtype=torch.uint16)
    if _C.thresholds(tuple(flat.shape), array(flat), array(out), torch.get_num_threads()):
        raise ValueError("logits contain NaN")
    return out.reshape(logits.shape)


class ThresholdCache:
    """The thresholds of logits that have not changed since: 2 bytes a weight for a faster draw. Off by default.

    It pays where many masks are drawn under the same logits, as in a certificate. A change is seen by the tensor's
    version counter, which every in-place operation advances; one through ``.data`` or another library is not seen.
    """

    def __init__(self) -> None:
        self.enabled = False
        self._held: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def get(self, logits: Tensor) -> Tensor | None:
        """Thresholds of ``logits`` [N, K], or None where the cache is off."""
        if not self.enabled:
            return None
        version, levels = self._held.get(logits, (None, None))
        if version != logits._version:
            levels = threshold_from_logits(logits)
            self._held[logits] = (logits._version, levels)
        return levels

    @property
    def nbytes(self) -> int:
        """What it holds now."""
        return sum(levels.nbytes for _, levels in self._held.values())

    def clear(self) -> None:
        """Give the memory back."""
        self._held.clear()


cache = ThresholdCache()
