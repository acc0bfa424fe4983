"""The signs of a full memory, and how much of it a plan may fill."""

from __future__ import annotations

import os

import torch

ROOM = 0.9
"""The fraction of the memory that a plan may fill."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for the errors of Python, and of torch on any device, that say that the memory is full."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def memory_of(device: torch.device) -> float:
    """Return the bytes of memory of a device."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
