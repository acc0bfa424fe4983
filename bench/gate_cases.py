"""The cases of ``make bench-gate``, run by one process for one commit: ``python -m bench.gate_cases``.

It uses public functions only, so that the same file measures both commits. It prints JSON: the file of the package that
ran, its backend, and the processor time of ours divided by that of the dense layer in each case.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import stochprune as sp
from bench.suite.turns import take_turns
from stochprune import backends

Run = Callable[[], object]
ROUNDS = 15
ROUND_SECONDS = 0.01
"""A contender that is faster repeats its call in each round."""


def linear(rows: int, cols: int, tokens: int, dtype: torch.dtype = torch.float32) -> dict[str, Run]:
    """Return a training step of a masked linear layer and of the dense one."""
    x, weight, logits, bias = _random(dtype, (tokens, cols), (rows, cols), (rows, cols), (rows,))
    masked = functools.partial(sp.functional.masked_linear, x, weight, logits, bias, seed=0, stream=2)
    return _steps(masked, lambda: F.linear(x, weight, bias), (x, weight, bias), logits)


def convolution(outputs: int, inputs: int, side: int, images: int) -> dict[str, Run]:
    """Return a training step of a masked convolution of 3 x 3 and of the dense one."""
    shape = (outputs, inputs, 3, 3)
    x, weight, logits, bias = _random(torch.float32, (images, inputs, side, side), shape, shape, (outputs,))
    masked = functools.partial(sp.functional.masked_conv2d, x, weight, logits, bias, padding=1, seed=0, stream=2)
    return _steps(masked, lambda: F.conv2d(x, weight, bias, padding=1), (x, weight, bias), logits)


CASES: dict[str, Callable[[], dict[str, Run]]] = {
    "linear step, 64 x 64, batch 8": lambda: linear(64, 64, 8),
    "linear step, 512 x 512, batch 64": lambda: linear(512, 512, 64),
    "linear step, 512 x 512, batch 64, bfloat16": lambda: linear(512, 512, 64, torch.bfloat16),
    "convolution step, 32 to 32 channels, 16 x 16, batch 8": lambda: convolution(32, 32, 16, 8),
}


def _steps(
    masked: Callable[..., Tensor], dense: Callable[[], Tensor], tensors: Sequence[Tensor], logits: Tensor
) -> dict[str, Run]:
    draws, grad = itertools.count(), torch.ones_like(dense())
    return {
        "ours": lambda: torch.autograd.grad(masked(draw=next(draws)), [*tensors, logits], grad),
        "dense": lambda: torch.autograd.grad(dense(), tensors, grad),
    }


def _random(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    numbers = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=numbers).to(dtype).requires_grad_() for shape in shapes]


def ratio(runs: dict[str, Run], rounds: int = ROUNDS) -> float:
    """Return the processor time of ours divided by that of the dense layer, the median over rounds."""
    first = take_turns(runs, 3)
    calls = {name: math.ceil(ROUND_SECONDS / min(first[name])) for name in runs}
    repeated = {name: functools.partial(_repeat, run, calls[name]) for name, run in runs.items()}
    times = take_turns(repeated, rounds)
    per_call = {name: [seconds / calls[name] for seconds in times[name]] for name in runs}
    return statistics.median(ours / dense for ours, dense in zip(per_call["ours"], per_call["dense"], strict=True))


def _repeat(run: Run, calls: int) -> None:
    for _ in range(calls):
        run()


def all_ours() -> Run:
    """Return the workload whose instructions are counted: one step of ours in each case."""
    runs = [make()["ours"] for make in CASES.values()]
    return lambda: [run() for run in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, help="only run the workload of the instruction count this many times")
    options = parser.parse_args()
    if options.calls is not None:
        _repeat(all_ours(), options.calls)
        return
    found = {name: ratio(make()) for name, make in CASES.items()}
    print(json.dumps({"file": sp.__file__, "backend": backends.resolve(torch.empty(1)).NAME, "ratios": found}))


if __name__ == "__main__":
    main()
