"""The base of the ops that are one layer with random weights."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stochprune import rng

from ..case import DTYPES, Case, Verdict, Way, Work, is_ours
from ..laws import LINEAR, Pass, Product, masked, near, probe

Forward = Callable[[Tensor], Tensor]
Make = Callable[[Tensor, Tensor, Tensor], Forward]
"""From the weight, the parameter of its distribution, and the bias; the result computes y from x."""
Within = Callable[[], contextlib.AbstractContextManager[Any]]
SEED, STREAM = 0, 2
"""Of our masks; their draws count from 1."""
PROBE = {"rows": 64, "cols": 192, "tokens": 8}
"""Sizes of the layer that is checked from outside."""


class LayerOp(abc.ABC):
    """One layer ``product(x, random weights) + bias``; here a linear one, of the shape rows, cols, tokens.

    Attributes:
        parameter: name of the tensor that the distribution of a weight has besides the weight.
        fixed: contenders that do not train it; they train the weight in every mode, because training a mask needs the
            gradient of the weight too.
        product: what the layer does with its weights.
    """

    baseline = "dense"
    laws: Mapping[str, str]
    parameter = "logits"
    fixed: tuple[str, ...] = ("dense",)
    product: Product = LINEAR

    @abc.abstractmethod
    def made(self, contender: str, case: Case, like: Tensor) -> tuple[Make, Within]:
        """Return the function that makes a contender, and the context in which it runs, on the device of ``like``.

        Raises:
            Absent: it cannot take part here.
        """

    @abc.abstractmethod
    def wrong(self, contender: str, case: Case, way: Way, one: Pass, other: Pass) -> str | None:
        """Return what is wrong with two passes of a small layer, or None."""

    def shapes(self, contender: str, case: Case) -> dict[str, tuple[int, ...]]:
        """Return the shapes of x, y, weight, the parameter and bias."""
        rows, cols, tokens = (case.shape[name] for name in ("rows", "cols", "tokens"))
        weight = (rows, cols)
        return {"x": (tokens, cols), "y": (tokens, rows), "weight": weight, "parameter": weight, "bias": (rows,)}

    def probe(self, case: Case, device: torch.device) -> tuple[Case, Tensor, Tensor]:
        """Return a small case, an input that begins with unit inputs, and a gradient of the output."""
        small = dataclasses.replace(case, shape={**case.shape, **PROBE})
        return small, *probe(**PROBE, dtype=DTYPES[case.dtype], device=device)

    def make(self, contender: str, case: Case, device: torch.device) -> Way:
        """Return a contender at the case's shape."""
        shapes = self.shapes(contender, case)
        return self.way(contender, case, *random(0, case, device, shapes["x"], shapes["y"]))

    def way(self, contender: str, case: Case, x: Tensor, grad: Tensor) -> Way:
        """Return a contender on an input, with the gradient of its output."""
        shapes = self.shapes(contender, case)
        made = random(1, case, x.device, shapes["weight"], shapes["parameter"], shapes["bias"])
        names = ("weight", self.parameter, "bias")
        frozen = self.parameter if contender in self.fixed else "weight" if case.mode == "mask-only" else None
        tensors = {name: nn.Parameter(t, requires_grad=name != frozen) for name, t in zip(names, made, strict=True)}
        make, within = self.made(contender, case, x)
        forward = make(*tensors.values())
        return Way(lambda: forward(x), {"x": x.requires_grad_(), **tensors}, grad, tensors["weight"].numel(), within)

    def check(self, contender: str, case: Case, device: torch.device) -> Verdict:
        """Check a small layer from outside; for ours, also the mask bits, and the gradients at the case's shape."""
        small, x, grad = self.probe(case, device)
        way = self.way(contender, small, x, grad)
        way.tensors["bias"].detach().zero_()  # rounding a sum with it could hide a small weight
        one, other = self.ran(way), self.ran(way)
        wrong = self.wrong(contender, small, way, one, other) or self.biased(way)
        if wrong is not None or not is_ours(contender):
            return Verdict(wrong)
        return self.exact(contender, case, small, way, one)

    def biased(self, way: Way) -> str | None:
        """Return what is wrong with the bias and its gradient, or None: with no input the output is the bias."""
        x, bias = (way.tensors[name].detach() for name in ("x", "bias"))
        former = x.clone()
        x.zero_()
        bias.copy_(torch.linspace(1, 2, len(bias)))
        found, beside = self.ran(way), self._beside(bias, way)
        x.copy_(former)
        wrong = near("bias", found.y + beside, beside.double().expand_as(found.y), found.x.dtype)
        expected = found.grad.double().sum_to_size(beside.shape).flatten()
        return wrong or near("gradient of bias", found.grads["bias"], expected, found.x.dtype)

    @staticmethod
    def _beside(bias: Tensor, way: Way) -> Tensor:
        """Return the bias in a shape that it has beside an output."""
        return bias.view(-1, *[1] * (way.tensors["weight"].dim() - 2))

    def exact(self, contender: str, case: Case, small: Case, way: Way, one: Pass) -> Verdict:
        """Compare ours with the contract: the bits of a small layer, and the outputs and gradients at the case's shape.

        Args:
            small, way: the small case and its layer.
            one: its first pass.
        """
        weight, logits = (way.tensors[name].detach() for name in ("weight", "logits"))
        equal = torch.equal(one.sampled != 0, self.contract(small, logits) & (weight != 0))
        way = self.make(contender, case, weight.device)
        weight, logits = (way.tensors[name].detach() for name in ("weight", "logits"))
        keep = self.contract(case, logits)
        wrong = self.known(case, weight, logits, keep, self.ran(way))
        return Verdict(wrong, bits_equal=equal and self.keeps(way, keep))

    def keeps(self, way: Way, keep: Tensor) -> bool:
        """Return True if a layer of the case's shape keeps just the weights of ``keep``; here nothing shows it."""
        return True

    def known(self, case: Case, weight: Tensor, logits: Tensor, keep: Tensor, found: Pass) -> str | None:
        """Return what is wrong with a pass whose mask is ``keep``, or None."""
        return masked(weight, logits, keep, found)

    def contract(self, case: Case, logits: Tensor) -> Tensor:
        """Return the mask of the first pass by the slow text of the contract, bool."""
        return contract_mask(logits, draw=1)

    def ran(self, way: Way) -> Pass:
        """Run a forward and a backward pass."""
        with way.within():
            y = way.forward()
            grads = way.backward(y)
        assert way.grad is not None
        bias = self._beside(way.tensors["bias"].detach(), way)
        return Pass(way.tensors["x"].detach(), y.detach() - bias, way.grad, grads, self.product)

    def work(self, case: Case, part: str) -> Work:
        """Count 2 M N K operations a product, and every operand and result once; logits are read in each direction."""
        rows, cols, tokens = (case.shape[name] for name in ("rows", "cols", "tokens"))
        return product_work(case, part, 2 * tokens * rows * cols, rows * cols, tokens * (rows + cols))


def product_work(case: Case, part: str, flops: int, weights: int, activations: int) -> Work:
    """Return the least work of a layer: one product forward, two backward.

    Args:
        flops: operations of a product.
        weights: number of weights; each has a logit.
        activations: numbers of input and output.
    """
    size = DTYPES[case.dtype].itemsize
    forward = Work(flops, size * (2 * weights + activations))
    written = 2 * weights if case.mode == "joint" else weights
    backward = Work(2 * flops, size * (2 * weights + written + 2 * activations))
    if part == "step":
        return Work(forward.flops + backward.flops, forward.bytes + backward.bytes)
    return forward if part == "forward" else backward


def contract_mask(logits: Tensor, draw: int, seed: int = SEED, stream: int = STREAM) -> Tensor:
    """Return the mask of one draw by the slow text of the contract, bool, in the shape of the logits."""
    rows = logits.flatten(1)
    uniform = rng.uniform16(*rows.shape, seed=seed, draw=draw, stream=stream, device=logits.device)
    keep = (uniform & (rng.LEVELS - 1)) < rng.threshold_from_logits(rows.detach()).to(torch.int32)
    return keep.view(logits.shape)


def random(seed: int, case: Case, device: torch.device, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Return standard normal tensors of the case's dtype."""
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=numbers).to(device, DTYPES[case.dtype]) for shape in shapes]


class Counter:
    """The draws of a layer's calls: each call returns those of the next one.

    They are a new tensor each time, because the graph of an earlier call has saved the last one.
    """

    def __init__(self, first: Tensor, step: int = 1) -> None:
        self.next, self.step = first, step

    def __call__(self) -> Tensor:
        draw, self.next = self.next, self.next + self.step
        return draw


def counter(device: torch.device) -> tuple[Tensor, Counter]:
    """Return the seed of our masks and draws that count from 1, int64 [1]: tensors, for CUDA graphs."""
    seed = torch.full((1,), SEED, dtype=torch.int64, device=device)
    return seed, Counter(torch.ones_like(seed))
