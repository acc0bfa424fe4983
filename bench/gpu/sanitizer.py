"""Check the memory accesses of every way with compute-sanitizer, on a small odd shape."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

from bench.gpu import device
from bench.gpu.job import LENGTH, Skip, tool

SHAPE = ("300", "77", "333")  # a shape of the smoke step, which has compiled its kernels
FOUND = 9  # exit status if the sanitizer found an error


def cases() -> list[str]:
    """Return the ways."""
    device.require()
    return list(device.ways())


def healthy() -> bool:
    """Return True: only other processes use the GPU."""
    return True


def run(case: str) -> dict[str, Any]:
    """Return the verdict of compute-sanitizer for one way.

    Raises:
        Skip: the tool or the way is missing, or the tool does not support this machine's GPU.
        RuntimeError: the tool found an access outside the allocated memory, or failed.
    """
    path = shutil.which("compute-sanitizer")
    if path is None:
        raise Skip("compute-sanitizer is not on the PATH")
    with device.forced(case):  # skips a way that was not built
        pass
    command = [path, "--tool", "memcheck", "--error-exitcode", str(FOUND), sys.executable, "-m", "bench.gpu.exercise"]
    # Switch off torch's cache of allocations: its blocks are larger than the tensors in them.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    ended = tool([*command, case, *SHAPE], env=environment)
    said = (ended.stdout + ended.stderr)[-LENGTH:]
    if ended.returncode == 0:
        return {"verdict": "clean"}
    if "Device not supported" in said:
        raise Skip("compute-sanitizer does not support this machine's GPU")
    raise RuntimeError(f"compute-sanitizer ended with status {ended.returncode}:\n{said}")
