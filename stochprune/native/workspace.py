"""Scratch memory that all layers share."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from stochprune.native.results import untouched

VIEWS = 64  # views of the workspace that are kept: making a view takes as long as a small kernel


class Workspace(threading.local):
    """Scratch memory of one thread, grown on demand and kept between calls.

    A panel of a layer's masked weight takes at most ``budget`` bytes. Fewer, larger panels are faster, because a matrix
    product over few rows loses more than the cache gains, so a layer that fits the budget is one panel.
    """

    _memory: Tensor
    _views: dict[tuple[tuple[int, ...], torch.dtype], Tensor]

    budget = 64 << 20
    cached = 1 << 20  # bytes that stay in a core's cache between two passes over them

    def __init__(self) -> None:
        self.release()

    @property
    def nbytes(self) -> int:
        """The bytes that the workspace holds now."""
        return self._memory.nbytes

    def draws(self, rows: int, cols: int, dtype: torch.dtype) -> int:
        """Return how many draws of a [rows, cols] matrix fit in the cache together; 0 if one draw needs panels."""
        size = max(1, rows * cols * dtype.itemsize)
        return max(1, min(Workspace.cached, Workspace.budget) // size) if size <= Workspace.budget else 0

    def panels(self, rows: int, cols: int, dtype: torch.dtype) -> list[slice]:
        """Return the rows of each panel of a [rows, cols] matrix: equal, within the budget, at least one row."""
        fitting = max(1, Workspace.budget // max(1, cols * dtype.itemsize))
        step = max(1, math.ceil(rows / max(1, math.ceil(rows / fitting))))
        return [slice(r, min(r + step, rows)) for r in range(0, rows, step)]

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return uninitialised scratch memory of this shape, valid until the next call."""
        view = self._views.get((shape, dtype))
        if view is None:
            size = math.prod(shape) * dtype.itemsize
            if self._memory.nbytes < size:
                self.release()
                self._memory = untouched(size)
            if len(self._views) == VIEWS:
                self._views.clear()
            view = self._views[shape, dtype] = self._memory[:size].view(dtype).view(shape)
        return view

    def release(self) -> None:
        """Free the memory."""
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._views = {}


workspace = Workspace()
