"""Measures the constants on which the choice of routes rests; see kernels/calibrate.py."""

from __future__ import annotations

from typing import Any

from bench.gpu import device
from bench.gpu.device import healthy as healthy
from bench.gpu.device import lost as lost
from stochprune import backends


def cases() -> list[str]:
    """One."""
    device.require()
    return ["constants"]


def run(case: str) -> dict[str, Any]:
    """The constants by name; they are also written where ``stochprune bench --calibrate`` writes them."""
    return dict(backends.load("triton").calibrate()._asdict())
