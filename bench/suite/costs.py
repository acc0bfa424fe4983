"""Costs of a call besides its time: peak bytes, launches, and the host's part."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], object]
HOST_CALLS = 20
"""Calls that are queued without a wait; the GPU's queue holds about a thousand launches."""


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; a CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def least_seconds(run: Run, device: torch.device, calls: int) -> float:
    """Return the least seconds of so many calls, after one that warms up."""
    found = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        run()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def peak_bytes(run: Run, device: torch.device) -> int:
    """Return the peak of torch's memory during a call, minus the memory before it."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _forget()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run()
    now = peak = 0
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def _forget() -> None:
    """Give back what our C++ backend keeps between calls, so that a call that needs it counts it."""
    with contextlib.suppress(ImportError):  # it may not be built
        from stochprune.native import freed, workspace

        workspace.release()
        freed.release()


def host_us(run: Run, device: torch.device) -> float:
    """Return the host's microseconds to queue a call on a GPU: the minimum of five rounds that do not wait for it."""
    rounds = []
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(HOST_CALLS):
            run()
        rounds.append(time.perf_counter() - start)
    synchronize(device)
    return 1e6 * min(rounds) / HOST_CALLS


def launches(run: Run, device: torch.device) -> int:
    """Return the number of kernels that a call launches on a GPU.

    Raises:
        RuntimeError: the profiler sees none.
    """
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run()
        synchronize(device)
    names = [event.name for event in found.events()]
    if count := count_launches(names):
        return count
    raise RuntimeError(f"the profiler saw no launch among {len(names)} events")


def count_launches(names: Sequence[str]) -> int:
    """Return how many events are calls of the launch functions of the runtime or the driver."""
    return sum(re.match(r"cu(da)?Launch(Cooperative)?Kernel", name) is not None for name in names)
