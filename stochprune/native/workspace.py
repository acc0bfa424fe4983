"""Scratch memory that all layers share."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from stochprune.native.arrays import fresh


class Workspace(threading.local):
    """Scratch memory of one thread, grown on demand and kept between calls.

    A panel of a layer's masked weight takes at most ``budget`` bytes. Fewer, larger panels are faster, because a matrix
    product over few rows loses more than the cache gains, so a layer that fits the budget is one panel.
    """

    budget = 64 << 20

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    @property
    def nbytes(self) -> int:
        """What it holds now."""
        return self._memory.nbytes

    def panel_rows(self, rows: int, cols: int, dtype: torch.dtype) -> int:
        """How many rows of a [rows, cols] matrix to hold at once: equal panels within the budget, at least one row."""
        fitting = max(1, Workspace.budget // max(1, cols * dtype.itemsize))
        return math.ceil(rows / math.ceil(rows / fitting)) if rows else 0

    def take(self, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised [rows, cols] view of the memory, valid until the next call."""
        size = rows * cols * dtype.itemsize
        if self._memory.numel() < size:
            self._memory = fresh((size,), torch.uint8)
        return self._memory[:size].view(dtype).view(rows, cols)

    def release(self) -> None:
        """Give the memory back."""
        self._memory = torch.empty(0, dtype=torch.uint8)


workspace = Workspace()
