"""The steps of the check on the CPU, with small shapes, made-up times and Triton's interpreter: ``mocked.smoke``, ...

A worker imports them in the place of ``bench.gpu.smoke``, ...; tests in their own process call :func:`mock`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import torch

from bench.gpu import install


def once(run: Callable[[], object]) -> float:
    """Run, and make up the microseconds."""
    run()
    return 4.0


def captured(runs: Sequence[Callable[[], object]]) -> float:
    """The same for a graph."""
    for run in runs:
        run()
    return 2.0


def mock(change: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replace the GPU by the CPU and small sizes."""
    from bench import draws
    from bench.gpu import device, smoke, times
    from bench.suite import costs
    from bench.suite.ops import linear_ways
    from stochprune import backends
    from stochprune.kernels.routes import ROOFLINE, ROUTES

    change(device, "DEVICE", "cpu")
    change(device, "require", lambda: None)
    change(device, "synchronize", lambda: None)
    change(device, "ways", lambda: ROUTES)
    change(device, "eager_us", once)
    change(device, "graph_us", captured)
    change(costs, "HOST_CALLS", 1)
    change(costs, "peak_bytes", lambda run, device: 7)
    change(backends, "TABLE", {**backends.TABLE, "cpu": ("triton", "reference")})
    backends.forget()
    change(smoke, "SHAPES", [(3, 24, 70), (17, 9, 130)])
    change(smoke, "DTYPE", torch.float32)  # the interpreter multiplies bfloat16 wrongly
    change(smoke, "REPEATS", 2)
    sizes = [times.Size(1, 24, 40), times.Size(3, 24, 40, "fp32")]
    plan = [(size, c) for size in sizes for c in ("dense", "in_register", "prepass", "compile", "seed replay")]
    each = [(times.Size(2, 24, 40, masks="each"), c) for c in ("in_register", "eager")]
    change(times, "PLAN", plan + each)
    change(times, "ceilings", lambda: {"copy_tb_per_s": 4.0, "matmul_tflop_per_s": 700.0})
    change(linear_ways, "CONTENDERS", {**linear_ways.CONTENDERS, "compile": linear_ways.eager})
    change(times, "CONTENDERS", linear_ways.CONTENDERS)
    change(draws, "measure", lambda *_: {"alone": 2.0, "together": 1.0})
    change(backends.load("triton"), "calibrate", lambda: ROOFLINE)


def mock_machine() -> None:
    """A GPU that has a name only; nothing is installed unless ``REHEARSE_PIP`` is set."""
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.get_device_properties = lambda _: SimpleNamespace(name="Mocked GPU", total_memory=2**37)
    if "REHEARSE_PIP" not in os.environ:
        install.PIP = install.METADATA = ("-c", "pass")


if len(sys.argv) > 1 and sys.argv[1].startswith("mocked."):  # a worker
    step = sys.argv[1].removeprefix("mocked.")
    if step in ("install", "versions"):  # before it the package cannot be imported
        mock_machine()
    else:
        mock()
    sys.modules[sys.argv[1]] = importlib.import_module(f"bench.gpu.{step}")
