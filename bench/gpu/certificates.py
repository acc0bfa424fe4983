"""Measure the Monte Carlo draws of certificates; see bench/draws.py."""

from __future__ import annotations

from typing import Any

from bench import draws
from bench.gpu import device
from bench.gpu.device import healthy as healthy
from bench.gpu.device import lost as lost
from stochprune.pac_bayes.certify import DRAWS

ROUNDS = 5


def cases() -> list[str]:
    """Return the networks of the published certificates."""
    device.require()
    return [f"{network} {family} {examples}" for network, family, examples in draws.CASES]


def run(case: str) -> dict[str, Any]:
    """Return microseconds per draw, alone and together, and the minutes for ``draws.GOAL`` draws."""
    network, family, examples = case.split()
    times = draws.measure(network, family, int(examples), DRAWS[device.DEVICE], ROUNDS, device.DEVICE)
    return {**times, "minutes": draws.GOAL * times["together"] / 60e6}
