"""Benchmark of a certificate's Monte Carlo draws: one network per forward pass, and many in one forward pass.

    python -m bench.draws         # a minute on one thread; prints a table

The networks are those of the certificates on MNIST, untrained, on random examples. The times are medians of rounds in
which the two take turns. On the CPU they are processor times of one thread. On a GPU they include the wait for the
losses.
"""

from __future__ import annotations

import argparse
import time

import torch

import stochprune as sp
from bench.tables import table
from bench.turns import medians, take_turns
from stochprune import models
from stochprune.pac_bayes import Prior, make_posterior
from stochprune.pac_bayes.certify import DRAWS, network_losses

GOAL = 150_000  # number of draws that certificates in the literature use
CASES = (
    ("lenet_300_100", "masks", 64),
    ("pbb_fc", "masks", 64),
    ("pbb_fc", "gaussian", 64),
    ("pbb_fc", "spike_and_slab", 64),
    ("pbb_cnn", "masks", 16),
)
COLUMNS = ("network", "posterior", "examples", "alone, us/draw", "together, us/draw", f"{GOAL:,} draws, minutes")


def measure(network: str, family: str, examples: int, draws: int, rounds: int, device: str) -> dict[str, float]:
    """Return microseconds per draw: ``alone`` is one draw per forward pass, ``together`` is ``draws`` of them."""
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
    return medians(take_turns({"alone": alone, "together": together}, rounds, clock), 1e6 / draws)


def rows(rounds: int, device: str) -> list[dict[str, object]]:
    """Measure all cases. ``minutes`` is the time of ``GOAL`` draws together."""
    found: list[dict[str, object]] = []
    for network, family, examples in CASES:
        times = measure(network, family, examples, DRAWS[device], rounds, device)
        case = {"network": network, "posterior": family, "examples": examples}
        found.append({**case, **times, "minutes": GOAL * times["together"] / 60e6})
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
