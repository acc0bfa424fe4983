"""The GPU: whether it is there and well, and how time, launches and memory of a step are measured on it.

A small kernel takes less time than its launch through Python, so a step is timed in two ways. In a CUDA graph the host
takes no part: the graph holds several steps, on different tensors, so that neither its own launch nor the second-level
cache counts. Eagerly the host does take part, and its share is measured beside it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import stochprune
from bench.gpu.job import Skip, Unusable

if importlib.util.find_spec("stochprune.kernels") is None:  # not installed: the repository's own folder serves
    stochprune.__path__.append(str(Path(__file__).parents[2]))

DEVICE = "cuda"
Run = Callable[[], object]
HOST_STEPS = 20  # enqueued without a wait; the GPU's queue holds about a thousand launches
REPLAYS_MS = 40
_failed_captures: list[str] = []  # of this process


def require() -> None:
    """Raise :class:`Unusable` where torch sees no GPU."""
    if not torch.cuda.is_available():
        raise Unusable("gpu-check needs an NVIDIA GPU; torch sees none on this machine")


def synchronize() -> None:
    """Wait for the GPU, so that an error belongs to the case that made it."""
    torch.cuda.synchronize()


def healthy() -> bool:
    """Return True unless an earlier error has stayed in this process: in its CUDA context, or in torch's graphs."""
    return not _failed_captures and lost() is None


def lost() -> str | None:
    """The error that has stayed in this process, if one has; one that goes away with its report is none."""
    with contextlib.suppress(RuntimeError):
        synchronize()
        return None
    try:
        synchronize()
    except RuntimeError as error:
        return str(error)
    return None


def ways() -> tuple[str, ...]:
    """Our own ways through a layer: the routes of the Triton backend, and the CUDA C++ backend."""
    from stochprune.kernels.routes import ROUTES

    return (*ROUTES, "cuda")


@contextlib.contextmanager
def forced(way: str) -> Iterator[None]:
    """Inside, the way is taken whatever the shape.

    Raises:
        Skip: it is the CUDA C++ backend, and that was not built.
    """
    from stochprune import backends
    from stochprune.kernels.routes import OVERRIDE

    if way == "cuda":
        try:
            backends.load("cuda")
        except RuntimeError as error:
            raise Skip(str(error)) from error
    name, value = (backends.OVERRIDE, "cuda") if way == "cuda" else (OVERRIDE, way)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def eager_us(run: Run) -> float:
    """Median time of a call between two events, in microseconds, the second-level cache cleared before each."""
    from triton.testing import do_bench

    return 1e3 * do_bench(run, warmup=10, rep=40, return_mode="median")


def graph_us(runs: Sequence[Run]) -> float:
    """Median time of one of ``runs`` inside one CUDA graph, in microseconds.

    Raises:
        RuntimeError: a run cannot be captured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for run in runs:
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for run in runs:
                run()
    except Exception as error:
        _failed_captures.append(str(error))
        raise
    return replayed_us(graph.replay) / len(runs)


def replayed_us(replay: Run) -> float:
    """Median time of a replay among many that the GPU runs one after the other, in microseconds.

    The tensors of a graph do not fit into the second-level cache together, so nothing clears it: what a clearing
    leaves there is written back while the next kernels run, and would count as theirs.
    """
    count = 5  # which warm up and tell how many there is time for
    for _ in range(2):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            replay()
            event.record()
        synchronize()
        times = [one.elapsed_time(other) for one, other in itertools.pairwise(events)]
        count = min(200, max(5, round(REPLAYS_MS / max(statistics.median(times), 1e-3))))
    return 1e3 * statistics.median(times)


def host_us(run: Run) -> float:
    """Time of the host to enqueue a call, in microseconds: the least of five rounds that do not wait for the GPU."""
    rounds = []
    for _ in range(5):
        synchronize()
        start = time.perf_counter()
        for _ in range(HOST_STEPS):
            run()
        rounds.append(time.perf_counter() - start)
    synchronize()
    return 1e6 * min(rounds) / HOST_STEPS


def launches(run: Run) -> int:
    """The number of kernels that a call launches.

    Raises:
        RuntimeError: the profiler sees none.
    """
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run()
        synchronize()
    names = [event.name for event in found.events()]
    if count := count_launches(names):
        return count
    raise RuntimeError(f"the profiler saw no launch among {len(names)} events")


def count_launches(names: Sequence[str]) -> int:
    """How many events are calls of the runtime's or the driver's launch functions."""
    return sum(re.match(r"cu(da)?Launch(Cooperative)?Kernel", name) is not None for name in names)


def peak_bytes(run: Run) -> int:
    """The most memory that a call holds above what was there before."""
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    synchronize()
    return torch.cuda.max_memory_allocated() - before
