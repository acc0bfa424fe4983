"""Benchmark of the host's part of a step on the CPU: small layers, in which calls cost more than the work.

    python -m bench.host    # a minute on one core

The contenders take turns, and the processor time of one thread is measured. The contender *eager* masks in plain
PyTorch. The table shows the microseconds of a step and their ratio to dense, in the median round and in the fastest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import stochprune as sp
from bench.models import eager
from bench.turns import medians, ratios, take_turns
from stochprune.models import resnet20

ROUNDS = 41


def layer(features: int) -> dict[str, nn.Module]:
    """Return one linear layer: dense, masked, and masked in plain PyTorch."""
    dense = nn.Linear(features, features)
    return {
        "dense": dense,
        "masked": sp.nn.MaskedLinear.from_linear(nn.Linear(features, features), 0.95),
        "eager": eager(nn.Sequential(nn.Linear(features, features))),
    }


def network() -> dict[str, nn.Module]:
    """Return ResNet-20: dense, masked layer by layer, and masked in plain PyTorch."""
    return {"dense": resnet20(seed=0), "masked": sp.convert(resnet20(seed=0)), "eager": eager(resnet20(seed=0))}


def steps(model: nn.Module, x: Tensor, count: int) -> None:
    """Run ``count`` steps: forward, backward, and deleting the gradients."""
    for _ in range(count):
        model(x).sum().backward()
        model.zero_grad(set_to_none=True)


CASES: dict[str, tuple[Callable[[], dict[str, nn.Module]], tuple[int, ...], int, int]] = {
    # the models, the shape of x, steps of each model in a round, and rounds
    "linear 64 x 64, batch 32": (lambda: layer(64), (32, 64), 50, ROUNDS),
    "linear 256 x 256, batch 32": (lambda: layer(256), (32, 256), 20, ROUNDS),
    "ResNet-20, batch 64": (network, (64, 3, 32, 32), 1, 7),
}


def main() -> None:
    torch.set_num_threads(1)
    table = Table("case", "contender", "median, us", "fastest, us", "median ratio", "fastest ratio")
    for case, (make, shape, repeats, rounds) in CASES.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            models, x = make(), torch.randn(shape)
            runs = {name: partial(steps, model, x, repeats) for name, model in models.items()}
            times = take_turns(runs, rounds, time.thread_time)
        median, ratio = medians(times, 1e6 / repeats), ratios(times, "dense")
        fastest = {name: 1e6 / repeats * min(seconds) for name, seconds in times.items()}
        for name in models:
            shown = (f"{median[name]:.0f}", f"{fastest[name]:.0f}", f"{ratio[name]:.2f}")
            table.add_row(case, name, *shown, f"{fastest[name] / fastest['dense']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
