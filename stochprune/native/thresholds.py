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
    """Thresholds of logits, kept while the logits do not change: 2 bytes for each weight. Off by default.

    The cache helps if many masks are sampled with the same logits, as in a certificate. It notices a change by the
    tensor's version counter, which every in-place operation advances. It does not notice a change through ``.data`` or
    by another library.
    """

    def __init__(self) -> None:
        self.enabled = False
        self._cached: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def get(self, logits: Logits) -> Tensor:
        """Return the thresholds of ``logits``, of its shape."""
        version, levels = self._cached.get(logits, (None, None))
        if version != logits._version:
            levels = threshold_from_logits(logits)
            self._cached[logits] = (logits._version, levels)
        return levels

    @property
    def nbytes(self) -> int:
        """The bytes that the cache holds now."""
        return sum(levels.nbytes for _, levels in self._cached.values())

    def clear(self) -> None:
        """Free the memory."""
        self._cached.clear()


cache = ThresholdCache()
