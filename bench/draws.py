"""Benchmark of a certificate's Monte Carlo draws: one network per forward pass, and many in one forward pass.

    python -m bench.draws         # a minute on one thread; prints a table

The networks are those of the certificates on MNIST, untrained, on random examples. The times are medians of rounds in
which the two take turns: processor time of one thread on the CPU; time on a GPU, which includes waiting for the losses.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import stochprune as sp
from bench.report import table
from stochprune import models
from stochprune.pac_bayes import Prior, make_posterior
from stochprune.pac_bayes.certify import DRAWS, network_losses

GOAL = 150_000  # draws of a certificate in the literature
CASES = (
    ("lenet_300_100", "masks", 64),
    ("pbb_fc", "masks", 64),
    ("pbb_fc", "gaussian", 64),
    ("pbb_fc", "spike_and_slab", 64),
    ("pbb_cnn", "masks", 16),
)
COLUMNS = ("network", "posterior", "examples", "alone, us a draw", "together, us a draw", f"{GOAL:,} draws, minutes")


def measure(network: str, family: str, examples: int, draws: int, rounds: int, device: str) -> dict[str, float]:
    """Return microseconds per draw, ``alone`` and ``together`` (``draws`` draws in a forward pass)."""
    model = sp.convert(models.build(network, (1, 28, 28), 10, 0)).to(device)
    posterior = make_posterior(Prior(model, ()), family)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(draws, examples, 1, 28, 28, generator=generator).to(device)
    y = torch.randint(0, 10, (draws, examples), generator=generator).to(device)

    def alone() -> None:
        for t in range(draws):
            network_losses(posterior, x[t : t + 1], y[t : t + 1], "zero_one", 1, t).sum(1).tolist()

    def together() -> None:
        network_losses(posterior, x, y, "zero_one", 1, 0).sum(1).tolist()

    clock = time.process_time if device == "cpu" else time.perf_counter
    times: dict[Callable[[], None], list[float]] = {alone: [], together: []}
    for way in times:
        way()  # compiles
    for _ in range(rounds):
        for way, seconds in times.items():
            start = clock()
            way()
            seconds.append(clock() - start)
    return {way.__name__: 1e6 * statistics.median(seconds) / draws for way, seconds in times.items()}


def rows(rounds: int, device: str) -> list[dict[str, object]]:
    """Measure all cases; ``minutes`` is the time of ``GOAL`` draws."""
    found: list[dict[str, object]] = []
    for network, family, examples in CASES:
        times = measure(network, family, examples, DRAWS[device], rounds, device)
        place = {"network": network, "posterior": family, "examples": examples}
        found.append({**place, **times, "minutes": GOAL * times["together"] / 60e6})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = rows(options.rounds, "cuda" if torch.cuda.is_available() else "cpu")
    print(table(COLUMNS, ([f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in lines)))


if __name__ == "__main__":
    main()
