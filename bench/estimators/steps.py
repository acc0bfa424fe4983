"""Time of a training step of a layer of a usual size under every gradient estimator."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.suite.turns import medians, take_turns
from bench.tables import table
from stochprune import functional
from stochprune.seeding import generator

WIDTH, BATCH, ROUNDS = 1024, 128, 9


def runs() -> dict[str, Callable[[], object]]:
    """Return one forward and backward pass of a layer under each estimator; each call uses the next draw."""
    numbers = generator(0, "estimators", "time")
    draws = itertools.count()

    def make(*shape: int) -> Tensor:
        return torch.from_numpy(numbers.normal(size=shape)).float()

    x, grad = make(BATCH, WIDTH).requires_grad_(), make(BATCH, WIDTH)
    weight = (make(WIDTH, WIDTH) / 32).requires_grad_()
    logits, rho = make(WIDTH, WIDTH).requires_grad_(), (make(WIDTH, WIDTH) - 5).requires_grad_()
    rows = make(WIDTH, 1).requires_grad_()

    def step(op: Callable[..., Tensor], *trained: Tensor, **options: Any) -> Callable[[], object]:
        """Return a step of ``op(x, *trained)``."""

        def run() -> object:
            y = op(x, *trained, seed=1, draw=next(draws), stream=3, **options)
            return torch.autograd.grad(y, (x, *trained), grad)

        return run

    def disarm() -> object:
        def loss(masks: dict[str, Tensor]) -> Tensor:
            return (F.linear(x, weight * masks["w"]) * grad).sum()

        given = {"w": logits.detach()}
        return functional.antithetic_gradient(loss, given, seed=1, draw=next(draws), streams={"w": 3})

    masked = ("straight_through", "concrete", "straight_through_concrete", "hard_concrete", "expected")
    return {
        "dense": lambda: torch.autograd.grad(F.linear(x, weight), (x, weight), grad),
        **{name: step(functional.masked_linear, weight, logits, estimator=name) for name in masked},
        "N:M 2:4, straight-through": step(functional.masked_linear_nm, weight, logits, pattern="2:4"),
        "rows": step(functional.masked_linear_blocks, weight, rows),
        "Gaussian weights": step(functional.spike_and_slab_linear, weight, rho),
        "spike and slab": step(functional.spike_and_slab_linear, weight, rho, logits),
        "local reparameterisation": step(functional.local_reparameterised_linear, weight, logits),
        "DisARM": disarm,
    }


def measure() -> dict[str, float]:
    """Return the milliseconds of a step by estimator: medians of rounds in which the estimators take turns."""
    return medians(take_turns(runs(), ROUNDS, time.perf_counter), 1e3)


def tables(ms: dict[str, float]) -> list[str]:
    """Return a heading, a description and the table of times."""
    lines = [[name, f"{each:.1f}", f"{each / ms['dense']:.2f}"] for name, each in ms.items()]
    threads = torch.get_num_threads()
    return [
        "### Time of a step",
        f"A step is the forward and backward pass of a {WIDTH} x {WIDTH} layer, with batch {BATCH}, in float32, on "
        f"{threads} {'thread' if threads == 1 else 'threads'}. Each time is the median of {ROUNDS} rounds in which the "
        "estimators take turns. DisARM makes two products and no backward pass.",
        table(["estimator", "ms", "times dense"], lines),
    ]
