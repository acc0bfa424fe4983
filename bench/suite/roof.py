"""The roof of this run: the bandwidth of a copy, and the rate of the best product."""

from __future__ import annotations

import dataclasses
import functools

import torch
import torch.nn.functional as F

from .case import Work
from .costs import least_seconds

COPIED = 1 << 27
"""Bytes of the copied tensor: several times a processor's caches."""
ROUNDS = 5
LONGEST = 0.25
"""Seconds of the longest product that is measured."""


@dataclasses.dataclass(frozen=True)
class Roof:
    """The best that this machine did in this run.

    Attributes:
        bandwidth: bytes a second of a copy, read and written.
        rate: floating-point operations a second of a square product, by dtype.
    """

    bandwidth: float
    rate: dict[str, float]

    def seconds(self, work: Work, dtype: str) -> float:
        """Return the least time of this work: the larger one of products alone and of memory alone."""
        return max(work.bytes / self.bandwidth, work.flops / self.rate[dtype])


def measure(device: torch.device, dtypes: dict[str, torch.dtype]) -> Roof:
    """Measure the roof for these dtypes."""
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    bandwidth = 2 * COPIED / least_seconds(lambda: target.copy_(source), device, ROUNDS)
    return Roof(bandwidth, {name: _rate(dtype, device) for name, dtype in dtypes.items()})


def _rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations a second of the best square product, of both layouts and growing sizes."""
    best, size = 0.0, 256
    while True:
        a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = min(
            least_seconds(functools.partial(product, a, b), device, ROUNDS) for product in (torch.matmul, F.linear)
        )
        best = max(best, 2 * size**3 / seconds)
        if 8 * seconds > LONGEST or size >= 8192:
            return best
        size *= 2
