"""Bytes: what a forward keeps for backward, and the largest amount a step holds at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def saved_bytes(forward: Callable[[], Tensor], owned: Sequence[Tensor]) -> int:
    """Bytes of the distinct storages that ``forward`` saves for backward, those of ``owned`` tensors not counted."""
    seen = {t.untyped_storage().data_ptr() for t in owned}
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        keep = forward()  # alive until counted, so that no storage address is used twice
    del keep
    return total


def peak_bytes(step: Callable[[], object]) -> int:
    """The largest sum of live allocations of torch's allocator during ``step``, above what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    now = peak = 0
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
