"""Thresholds of logits, kept while the logits do not change."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

from stochprune.address import Logits


class Entry(NamedTuple):
    """Thresholds of logits at one version."""

    version: int
    storage: weakref.ref[torch.UntypedStorage]  # of the logits: another one may have the same address later
    address: int  # of the logits
    levels: Tensor


def _advance(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Advance the version counters of the parameters that a fused optimiser of torch changed without doing so."""
    for group in optimizer.param_groups:
        if group.get("fused"):
            torch.autograd.graph.increment_version(group["params"])


@functools.cache
def _follow_optimizers() -> None:
    register_optimizer_step_post_hook(_advance)


class ThresholdCache:
    """Thresholds of logits, kept while the logits do not change: 2 bytes for each weight. Off by default.

    The cache helps if many masks are sampled with the same logits, as in a certificate. It notices a change by the
    tensor's version counter, which every in-place operation advances. The kernels of torch's fused optimisers do not:
    the first entry of any cache registers a hook, which advances the counters after each step of such an optimiser.
    Tensors made in inference mode have no such counter and are not cached.

    It is off because it does not notice every change, and a wrong mask raises no error. A change through ``.data``,
    through a NumPy array on the same memory or by another library leaves no trace but the values. To notice it, each
    call would have to read all logits, since a checksum of a sample misses the other values. On a CPU, comparing them
    with a copy takes longer than the cache saves (1.0 and 0.4 ns per weight with AVX2), and the copy takes 4 bytes per
    weight more. Even a sum of all bits, in which two changes can cancel, takes 0.3 ns. In training the logits change
    in every step, so that only the backward pass would use the thresholds. Many draws in one call share thresholds
    without a cache.

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
        # ``module.to(device)`` gives a parameter new values without a new version, perhaps at an earlier address.
        moved = entry.address != logits.data_ptr() or entry.storage() is not logits.untyped_storage()
        same = entry.version == logits._version and not moved
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
        _follow_optimizers()
        storage = weakref.ref(logits.untyped_storage())
        self._cached[logits] = Entry(logits._version, storage, logits.data_ptr(), levels)

    @property
    def nbytes(self) -> int:
        """The bytes that the cache holds now."""
        return sum(entry.levels.nbytes for entry in self._cached.values())

    def clear(self) -> None:
        """Free the memory."""
        self._cached.clear()
