"""Benchmark of a certificate's Monte Carlo draws: one network per forward pass, and many in one forward pass.

    python -m bench.draws         # a minute on one thread; prints a table

The networks are those of the certificates on MNIST, untrained, on random examples: the contenders ``ours`` of the
suite's group ``certificates``, which also has the ways in plain PyTorch. The times are medians of rounds in which the
two take turns. On the CPU they are processor times of one thread. On a GPU they include the wait for the losses.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from bench.suite.case import Case
from bench.suite.ops import OPS
from bench.suite.ops.certificate import contender
from bench.suite.turns import medians, take_turns
from bench.tables import table
from stochprune.pac_bayes.certify import DRAWS

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
    case = Case("certificates", network, {"draws": draws, "examples": examples})

    def losses(way: str) -> Callable[[], object]:
        forward = OPS[network].make(contender(way, family), case, torch.device(device)).forward
        return lambda: forward().tolist()

    ways = {"alone": losses("ours, one by one"), "together": losses("ours")}
    clock = time.process_time if device == "cpu" else time.perf_counter
    return medians(take_turns(ways, rounds, clock), 1e6 / draws)


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
