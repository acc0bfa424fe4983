"""Thresholds of logits, kept while the logits do not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from stochprune.address import Logits


class Entry(NamedTuple):
    """Thresholds of logits at one version."""

    version: int
    address: int  # of the logits
    levels: Tensor


class ThresholdCache:
    """Thresholds of logits, kept while the logits do not change: 2 bytes for each weight. Off by default.

    The cache helps if many masks are sampled with the same logits, as in a certificate. It notices a change by the
    tensor's version counter, which every in-place operation advances. It does not notice a change through ``.data`` or
    by another library. Tensors made in inference mode have no such counter and are not cached.

    Args:
        form: returns the thresholds of logits, in the form that a backend reads.
    """

    def __init__(self, form: Callable[[Logits], Tensor]) -> None:
        self.enabled = False
        self._form = form
        self._cached: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def find(self, logits: Logits) -> Tensor | None:
        """Return the thresholds of ``logits`` if the cache has them for its present values."""
        entry = self._cached.get(logits)
        if entry is None or logits.is_inference():
            return None
        # ``module.to(device)`` gives a parameter new values without a new version.
        same = entry.version == logits._version and entry.address == logits.data_ptr()
        return entry.levels if same and entry.levels.device == logits.device else None

    def get(self, logits: Logits) -> Tensor:
        """Return the thresholds of ``logits``; form them if needed, and keep them if the cache is enabled."""
        levels = self.find(logits)
        if levels is None:
            levels = self._form(logits)
            if self.enabled and not logits.is_inference():
                self.keep(logits, levels)
        return levels

    def keep(self, logits: Logits, levels: Tensor) -> None:
        """Store the thresholds of the present values of ``logits``."""
        self._cached[logits] = Entry(logits._version, logits.data_ptr(), levels)

    @property
    def nbytes(self) -> int:
        """The bytes that the cache holds now."""
        return sum(entry.levels.nbytes for entry in self._cached.values())

    def clear(self) -> None:
        """Free the memory."""
        self._cached.clear()
