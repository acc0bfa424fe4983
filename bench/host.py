"""The host's part of a step, on the CPU: small layers, where calls cost more than the work.

    python -m bench.host    # a minute on one core

A forward and backward of each contender, in turns, in processor time of one thread; ``eager`` masks in plain PyTorch.
Prints microseconds and the ratio to dense: the medians of the rounds, and the fastest round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import stochprune as sp
from bench.models import eager
from stochprune.models import resnet20

ROUNDS = 41


def layer(features: int) -> dict[str, nn.Module]:
    """One linear layer, dense and masked."""
    dense = nn.Linear(features, features)
    return {
        "dense": dense,
        "masked": sp.nn.MaskedLinear.from_linear(nn.Linear(features, features), 0.95),
        "eager": eager(nn.Sequential(nn.Linear(features, features))),
    }


def network() -> dict[str, nn.Module]:
    """ResNet-20, dense and masked layer by layer."""
    return {"dense": resnet20(seed=0), "masked": sp.convert(resnet20(seed=0)), "eager": eager(resnet20(seed=0))}


def step(model: nn.Module, x: Tensor) -> None:
    """Forward, backward, and deleting the gradients."""
    model(x).sum().backward()
    model.zero_grad(set_to_none=True)


def rounds(models: dict[str, nn.Module], x: Tensor, repeats: int, count: int) -> dict[str, list[float]]:
    """Seconds of a step of each model, by round."""
    found: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(count + 1):
        for name, model in models.items():
            start = time.thread_time()
            for _ in range(repeats):
                step(model, x)
            if turn:  # the first warms up
                found[name].append((time.thread_time() - start) / repeats)
    return found


CASES: dict[str, tuple[Callable[[], dict[str, nn.Module]], tuple[int, ...], int, int]] = {
    "linear 64 x 64, batch 32": (lambda: layer(64), (32, 64), 50, ROUNDS),
    "linear 256 x 256, batch 32": (lambda: layer(256), (32, 256), 20, ROUNDS),
    "ResNet-20, batch 64": (network, (64, 3, 32, 32), 1, 7),
}


def main() -> None:
    torch.set_num_threads(1)
    table = Table("case", "contender", "median, us", "fastest, us", "median ratio", "fastest ratio")
    for case, (make, shape, repeats, count) in CASES.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found = rounds(make(), torch.randn(shape), repeats, count)
        for name, seconds in found.items():
            dense = found["dense"]
            ratio = statistics.median(a / b for a, b in zip(seconds, dense, strict=True))
            times = (1e6 * statistics.median(seconds), 1e6 * min(seconds))
            table.add_row(case, name, *(f"{t:.0f}" for t in times), f"{ratio:.2f}", f"{min(seconds) / min(dense):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
