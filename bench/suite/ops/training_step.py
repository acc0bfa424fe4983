"""A whole training step of a network: forward, backward, and AdamW."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from stochprune import models

from .. import laws
from ..case import DTYPES, Case, Verdict, Way, Work
from .linear import PRUNE
from .linear_nm import MASKLLM
from .network import EXAMPLES, Network
from .network_ways import PATTERN

DEPTH = 4
"""Layers of the network."""
RATE, DECAY, EPSILON = 1e-3, 1e-2, 1e-8
"""Rate, weight decay and epsilon of AdamW."""


class Stepping(Way):
    """A contender whose step also makes an optimiser with its state, before the forward pass, and uses it.

    So the peak of a step is that of any later step of a training, in which the state exists during forward and
    backward, without the parameters: the state, the gradients and everything temporary.
    """

    def part(self, name: str) -> Callable[[], object]:
        """Return the function that is timed for a part."""
        return self.step if name == "step" else super().part(name)

    def step(self) -> dict[str, Tensor]:
        """Return the gradients of the trained tensors by name, after the optimiser has used them."""
        trained = self.trained
        # The fused step has no temporary memory, so that the peak is that of the contender.
        optimiser = torch.optim.AdamW([*trained.values()], lr=RATE, weight_decay=DECAY, eps=EPSILON, fused=True)
        for tensor in trained.values():
            moments = {name: torch.zeros_like(tensor) for name in ("exp_avg", "exp_avg_sq")}
            optimiser.state[tensor] = {"step": torch.zeros((), device=tensor.device), **moments}
        grads = self.backward(self.forward())
        for name, tensor in trained.items():
            tensor.grad = grads[name]
        optimiser.step()
        for tensor in trained.values():
            tensor.grad = None
        return grads


class TrainingStep(Network):
    """A step of a square network of four linear layers, on few examples; shape: examples.

    MaskLLM chooses one pattern of 2:4 for each group of weights; its 6 logits a group are 1.5 a weight.

    Args:
        width: of each layer; the network has ``4 width^2`` weights.
    """

    laws: Mapping[str, str] = {
        "dense": "none",
        "ours": "bernoulli",
        "eager": "bernoulli",
        MASKLLM: "categorical",
        PRUNE: "fixed",
    }

    def __init__(self, width: int) -> None:
        sizes = (width,) * (DEPTH + 1)
        super().__init__(lambda: models.mlp(sizes, seed=0), lambda count: _waves(count, width))

    def make(self, contender: str, case: Case, device: torch.device) -> Stepping:
        """Return a contender at the case's shape."""
        return Stepping(**vars(super().make(contender, case, device)))

    def check(self, contender: str, case: Case, device: torch.device) -> Verdict:
        """Check loss and gradients as for any network, then the patterns of MaskLLM, and the step of the optimiser."""
        verdict = super().check(contender, case, device)
        if verdict.wrong is not None:
            return verdict
        small = dataclasses.replace(case, shape={"examples": EXAMPLES})
        wrong = self._patterns(small, device) if contender == MASKLLM else None
        way = self.make(contender, small, device)
        before = {name: tensor.detach().double() for name, tensor in way.trained.items()}
        for name, grad in way.step().items():
            g = grad.double()  # the first step of Adam: its means of g and g^2 are g and g^2 without their bias
            expected = before[name] * (1 - RATE * DECAY) - RATE * g / (g.abs() + EPSILON)
            wrong = wrong or laws.near(f"the step of {name}", way.tensors[name].detach(), expected, DTYPES[case.dtype])
        return dataclasses.replace(verdict, wrong=wrong)

    def work(self, case: Case, part: str) -> Work:
        """Count the network's work, and for each trained number a read and a write of it, and writes of its state."""
        found = super().work(case, part)
        trained = self._weights * (2 if case.mode == "joint" else 1)
        return Work(found.flops, found.bytes + 4 * DTYPES[case.dtype].itemsize * trained)

    def _patterns(self, case: Case, device: torch.device) -> str | None:
        """Return what is wrong with the patterns of MaskLLM, or None."""
        n, m = PATTERN
        parts, _ = self.made(MASKLLM, case, device, torch.float64)
        with parametrize.cached():
            kept = [(part.sampled() != 0).unflatten(1, (-1, m)).sum(-1) for part in parts.values()]
        return None if all((count == n).all() for count in kept) else f"a group keeps another number than {n} of {m}"


def _waves(count: int, width: int) -> Tensor:
    """Return inputs [count, width] without a random generator."""
    return torch.linspace(-1, 1, count * width).view(count, width).mul(1e4).sin() * math.sqrt(2)
