"""Memory in bytes: the tensors that a forward pass saves for backward, and the peak of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def saved_bytes(forward: Callable[[], Tensor], owned: Sequence[Tensor]) -> int:
    """Return the bytes of the distinct storages that ``forward`` saves for backward, without those of ``owned``."""
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
        keep = forward()  # kept until the end, so that no address of a storage is used twice
    del keep
    return total


def peak_bytes(step: Callable[[], object]) -> int:
    """Return the peak of torch's live allocations during ``step`` minus the allocations before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    now = peak = 0
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
