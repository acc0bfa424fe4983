"""Measure the constants on which the choice of routes depends; see kernels/calibrate.py."""

from __future__ import annotations

from typing import Any

from bench.gpu import device
from bench.gpu.device import healthy as healthy
from bench.gpu.device import lost as lost
from stochprune import backends


def cases() -> list[str]:
    """Return the one case."""
    device.require()
    return ["constants"]


def run(case: str) -> dict[str, Any]:
    """Return the constants by name, and write them to the file of ``stochprune bench --calibrate``."""
    return dict(backends.load("triton").calibrate()._asdict())
