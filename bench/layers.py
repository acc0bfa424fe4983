"""Benchmark of single layers on the CPU, each beside the dense layer: small linear layers, and draws of convolutions.

    python -m bench.layers    # a few minutes on a quiet machine; prints two tables

The contenders take turns in many short rounds. One thread is measured by its processor time, which other load affects
little; several threads by the clock, which needs a quiet machine.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch
from torch import Tensor, nn

import stochprune as sp
from bench.host import steps
from bench.tables import table
from bench.turns import medians, ratios, take_turns

LINEAR = [(width, batch) for width in (256, 512, 1024) for batch in (32, 128)]
# Examples of a draw, channels, outputs, height and width of an image; the kernel is 3 x 3.
FEW = [(1, 32, 64, 26), (2, 16, 16, 16), (4, 16, 16, 8), (4, 64, 64, 8)]
CONVOLUTIONS = [*FEW, (16, 1, 32, 28), (16, 32, 64, 26), (16, 64, 64, 8)]
DRAWS = 8
ROUND_WORK = 2e8  # multiplications of a dense layer's steps in a round, for times well above the clock's resolution


def mask_only(layer: nn.Module) -> nn.Module:
    """Freeze the weight of a masked layer."""
    layer.weight.requires_grad_(False)
    return layer


def measure_linear(width: int, batch: int, threads: int, rounds: int) -> dict[str, float]:
    """Return microseconds of a dense step, and the ratios of the masked steps to it in the median round."""
    torch.set_num_threads(threads)
    with torch.random.fork_rng():
        dense = nn.Linear(width, width)
    models = {
        "dense": dense,
        "joint": sp.nn.MaskedLinear(width, width),
        "mask-only": mask_only(sp.nn.MaskedLinear(width, width)),
    }
    x = torch.linspace(-1, 1, batch * width).view(batch, width).sin().requires_grad_()
    repeats = max(1, int(ROUND_WORK / (3 * batch * width**2)))
    runs = {name: partial(steps, model, x, repeats) for name, model in models.items()}
    times = take_turns(runs, rounds, time.thread_time if threads == 1 else time.perf_counter)
    return {"dense, us": medians(times, 1e6 / repeats)["dense"], **ratios(times, "dense")}


def measure_draws(examples: int, channels: int, outputs: int, size: int, rounds: int) -> dict[str, float]:
    """Return microseconds of a draw one by one, and times by which the draws together are faster; one thread."""
    torch.set_num_threads(1)
    layer = sp.nn.MaskedConv2d(channels, outputs, 3, padding=1)
    count = DRAWS * examples * channels * size**2
    x = torch.linspace(-1, 1, count).view(DRAWS, examples, channels, size, size).sin().requires_grad_()
    at = {"seed": 0, "stream": layer.stream}
    every, each = torch.arange(DRAWS), [torch.tensor([d]) for d in range(DRAWS)]

    def masked(x: Tensor, draw: Tensor) -> Tensor:
        return sp.functional.masked_conv2d(x, layer.weight, layer.mask_logits, layer.bias, draw=draw, padding=1, **at)

    def alone(trains: bool) -> None:
        for d, draw in enumerate(each):
            y = masked(x[d], draw)
            if trains:
                y.sum().backward()

    def together(trains: bool) -> None:
        y = masked(x, every)
        if trains:
            y.sum().backward()

    parts = ("forward", "step")
    runs = {f"{f.__name__} {part}": partial(f, part == "step") for part in parts for f in (alone, together)}
    times = take_turns(runs, rounds, time.thread_time)
    found: dict[str, float] = {}
    for part in parts:
        found[f"{part} alone, us"] = medians(times, 1e6 / DRAWS)[f"alone {part}"]
        found[f"{part}, together"] = ratios(times, f"together {part}")[f"alone {part}"]
    return found


def rows(threads: int, rounds: int) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Measure all cases of both tables."""
    linear: list[dict[str, object]] = []
    for count in sorted({1, threads}):
        for width, batch in LINEAR:
            found = measure_linear(width, batch, count, rounds)
            linear.append({"width": width, "batch": batch, "threads": count, **found})
    names = ("examples", "channels", "outputs", "size")
    draws = [dict(zip(names, case, strict=True)) | measure_draws(*case, rounds) for case in CONVOLUTIONS]
    return linear, draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="measured beside one thread")
    options = parser.parse_args()
    for found in rows(options.threads, options.rounds):
        lines = ([f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in found)
        print(table(list(found[0]), lines))


if __name__ == "__main__":
    main()
