"""Run one way, forward and backward, a few times on one shape, for the profiler and the sanitizer.

python -m bench.gpu.exercise in_register 33 70 130
"""

from __future__ import annotations

import sys

from bench.gpu import device, smoke


def exercise(way: str, m: int, n: int, k: int, times: int = 2) -> None:
    """Run ``way`` several times for x [m, k] and weights [n, k]."""
    tensors = [t.to(device.DEVICE) for t in smoke.inputs(m, n, k)]
    with device.forced(way):
        for _ in range(times):
            smoke.step(*tensors)
    device.synchronize()


if __name__ == "__main__":
    exercise(sys.argv[1], *map(int, sys.argv[2:5]))
