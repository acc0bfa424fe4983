"""Check the state of the GPU, and measure time, launches and memory of a step on it.

A small kernel takes less time than its launch from Python, so a step is timed in two ways. In a CUDA graph the host's
time does not count. The graph holds several steps on different tensors, so that its own launch takes little of the time
and the second-level cache does not help. The eager time includes the host's part, which is also measured alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

import stochprune
from bench.gpu.job import Skip, Unusable

if importlib.util.find_spec("stochprune.kernels") is None:  # not installed: use the repository's folder
    stochprune.__path__.append(str(Path(__file__).parents[2]))

DEVICE = "cuda"
Run = Callable[[], object]
REPLAYS_MS = 40
_failed_captures: list[str] = []  # of this process


def require() -> None:
    """Raise :class:`Unusable` if torch sees no GPU."""
    if not torch.cuda.is_available():
        raise Unusable("gpu-check needs an NVIDIA GPU; torch sees none on this machine")


def synchronize() -> None:
    """Wait for the GPU, so that an error is raised in the case that caused it."""
    torch.cuda.synchronize()


def healthy() -> bool:
    """Return True unless an earlier error remains in this process, in its CUDA context or in torch's graphs."""
    return not _failed_captures and lost() is None


def lost() -> str | None:
    """Return the error that remains in this process, or None. An error that is reported only once does not remain."""
    with contextlib.suppress(RuntimeError):
        synchronize()
        return None
    try:
        synchronize()
    except RuntimeError as error:
        return str(error)
    return None


def ways() -> tuple[str, ...]:
    """Return our own ways to compute a layer: the routes of the Triton backend, and the CUDA C++ backend."""
    from stochprune.kernels.routes import ROUTES

    return (*ROUTES, "cuda")


@contextlib.contextmanager
def forced(way: str) -> Iterator[None]:
    """Use this way for all shapes inside the block.

    Raises:
        Skip: the way is the CUDA C++ backend, which was not built.
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
    """Return the median microseconds of a call between two events; the second-level cache is cleared before each."""
    from triton.testing import do_bench

    return 1e3 * do_bench(run, warmup=10, rep=40, return_mode="median")


def graph_us(runs: Sequence[Run]) -> float:
    """Return the median microseconds of one of ``runs`` inside one CUDA graph.

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
    """Return the median microseconds of a replay, among many that the GPU runs one after the other.

    The second-level cache is not cleared, since it cannot hold all tensors of a graph. After a clear, the GPU would
    write the cache back while the next kernels run, and their times would include that.
    """
    count = 5  # the first replays warm up; their time determines the number of the others
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
