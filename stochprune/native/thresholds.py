"""Thresholds of logits in C++, exact, and their optional cache."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from stochprune import _C
from stochprune.address import Logits


def threshold_from_logits(logits: Logits) -> Tensor:
    """As :func:`stochprune.reference.threshold_from_logits`."""
    out = torch.empty(logits.shape, dtype=torch.uint16)
    _C.thresholds(logits, out, torch.get_num_threads())
    return out


class ThresholdCache:
    """The thresholds of logits that have not changed since: 2 bytes a weight for a faster draw. Off by default.

    It pays where many masks are drawn under the same logits, as in a certificate. A change is seen by the tensor's
    version counter, which every in-place operation advances; one through ``.data`` or another library is not seen.
    """

    def __init__(self) -> None:
        self.enabled = False
        self._held: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def get(self, logits: Logits) -> Tensor:
        """Return the thresholds of ``logits``, of its shape."""
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
