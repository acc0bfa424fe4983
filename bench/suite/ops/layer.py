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

from .. import laws
from ..case import DTYPES, Case, Verdict, Way, Work, is_ours
from ..laws import LINEAR, Pass, Product, masked, near, probe

Forward = Callable[[Tensor], Tensor]
Make = Callable[..., Forward]
"""From the weight, the parameter of its distribution, and the bias if there is one; the result computes y from x."""
Within = Callable[[], contextlib.AbstractContextManager[Any]]
SEED, STREAM = 0, 2
"""Seed and stream of our masks; their draws count from 1."""
FIXED = ("none", "fixed", "magnitude")
"""Laws whose parameter is not trained."""
PROBE = {"rows": 64, "cols": 192, "tokens": 8}
"""Sizes of the layer that is checked from outside."""


class LayerOp(abc.ABC):
    """One layer ``product(x, random weights) + bias``; here a linear one, of the shape rows, cols, tokens.

    Attributes:
        parameter: name of the tensor that the distribution of a weight has besides the weight.
        product: what the layer does with its weights.
        features: the dimension of x that the weight multiplies; dimension 1 of a weight has the same entries.
        others: contenders of a user, see :mod:`.outside`.
    """

    baseline = "dense"
    laws: Mapping[str, str]
    parameter = "logits"
    product: Product = LINEAR
    features = 1
    others: Mapping[str, Make] = {}

    @abc.abstractmethod
    def made(self, contender: str, case: Case, like: Tensor) -> tuple[Make, Within]:
        """Return the function that makes a contender, and the context in which it runs, on the device of ``like``.

        Raises:
            Absent: it cannot take part here.
        """

    def wrong(self, contender: str, case: Case, way: Way, one: Pass, other: Pass) -> str | None:
        """Return what is wrong with two passes of a layer, or with the part of it that they show, or None.

        Here a law is "none", for a dense layer, or Bernoulli.
        """
        weight, logits = (way.tensors[name].detach() for name in ("weight", "logits"))
        return laws.fixed(weight, one) if self.laws[contender] == "none" else laws.bernoulli(weight, logits, one, other)

    def shapes(self, contender: str, case: Case) -> dict[str, tuple[int, ...]]:
        """Return the shapes of x, y, weight, the parameter and, if there is one, the bias."""
        rows, cols, tokens = (case.shape[name] for name in ("rows", "cols", "tokens"))
        weight = (rows, cols)
        return {"x": (tokens, cols), "y": (tokens, rows), "weight": weight, "parameter": weight, "bias": (rows,)}

    def small(self, case: Case) -> Case:
        """Return a small case, of which all weights are looked at."""
        return dataclasses.replace(case, shape={**case.shape, **PROBE})

    def shown(self, case: Case) -> tuple[Case, Tensor] | None:
        """Return the case of a part of the layer, and the columns that it has of the weight, or None.

        Half of the inputs are units, so there are at most as many columns.
        """
        cols, tokens = case.shape["cols"], case.shape["tokens"]
        columns = choice(cols, tokens // 2)
        shape = {**case.shape, "cols": len(columns), "tokens": tokens - len(columns)}
        return dataclasses.replace(case, shape=shape), columns

    def units(self, case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return an input that begins with units and goes on with those of the case, and a gradient of the output."""
        rows, cols, tokens = (case.shape[name] for name in ("rows", "cols", "tokens"))
        return probe(rows, cols, tokens, dtype=DTYPES[case.dtype], device=device)

    def inputs(self, case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return an input of the case's shape, and a gradient of the output."""
        shapes = self.shapes(self.baseline, case)
        x, grad = random(0, case, device, shapes["x"], shapes["y"])
        return x, grad

    def make(self, contender: str, case: Case, device: torch.device) -> Way:
        """Return a contender at the case's shape."""
        return self.way(contender, case, *self.inputs(case, device))

    def way(self, contender: str, case: Case, x: Tensor, grad: Tensor) -> Way:
        """Return a contender on an input, with the gradient of its output."""
        tensors = self.tensors(contender, case, x.device)
        within: Within = contextlib.nullcontext
        if contender in self.others:
            make = self.others[contender]
        else:
            make, within = self.made(contender, case, x)
        forward = make(*tensors.values())
        weights = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("weight"))
        x = x.requires_grad_(x.is_floating_point())
        return Way(lambda: forward(x), {"x": x, **tensors}, grad, weights, within)

    def tensors(self, contender: str, case: Case, device: torch.device) -> dict[str, nn.Parameter]:
        """Return the weight, its parameter and the bias; the mode says which are trained.

        A contender that does not train the parameter trains the weight in every mode, because training a mask needs the
        gradient of the weight too.
        """
        shapes = self.shapes(contender, case)
        keys = {"weight": "weight", self.parameter: "parameter", "bias": "bias"}
        names = [name for name, key in keys.items() if key in shapes]
        made = random(1, case, device, *(shapes[keys[name]] for name in names))
        fixed = self.laws[contender] in FIXED
        frozen = self.parameter if fixed else "weight" if case.mode == "mask-only" else None
        return {name: nn.Parameter(t, requires_grad=name != frozen) for name, t in zip(names, made, strict=True)}

    def check(self, contender: str, case: Case, device: torch.device) -> Verdict:
        """Check a small layer from outside, then one of the case's shape.

        Of ours all weights of the second one are checked, with the contract's masks and, of the small one, its bits. Of
        the others a part is: a sample of the columns, as many as its input can show.
        """
        small = self.small(case)
        way = self.way(contender, small, *self.units(small, device))
        wrong, one = self.outside(contender, small, way)
        if wrong is not None:
            return Verdict(wrong)
        if is_ours(contender):
            return self.exact(contender, case, small, way, one)
        wrong = self.large(contender, case, device)
        return Verdict(None if wrong is None else f"at the shape of the case: {wrong}")

    def outside(self, contender: str, case: Case, way: Way) -> tuple[str | None, Pass]:
        """Return what is wrong with two passes of a layer whose input begins with units, or None; and the first one."""
        one, other = self.unbiased(way)
        return self.wrong(
            contender, case, dataclasses.replace(way, tensors=self.joined(way.tensors)), one, other
        ) or self.biased(way), one

    def large(self, contender: str, case: Case, device: torch.device) -> str | None:
        """Return what is wrong with some columns of a layer of the case's shape, or None.

        All other inputs are 0, so these columns are a smaller layer, and the other weights have no gradient.
        """
        if (found := self.shown(case)) is None:
            return None
        part, columns = found[0], found[1].to(device)
        x, grad = self.units(part, device)
        way = self.way(contender, case, self.spread(case, x, columns), grad)
        full = self.unbiased(way)
        cut, passes = self.part(case, way, full, x, columns)
        wrong = self.wrong(contender, part, cut, *passes) or self.elsewhere(case, full[0], columns)
        return wrong or self.biased(way)

    def unbiased(self, way: Way) -> tuple[Pass, Pass]:
        """Return two passes with a bias of 0: rounding a sum with it could hide a small weight."""
        if "bias" in way.tensors:
            way.tensors["bias"].detach().zero_()
        return self.ran(way), self.ran(way)

    def spread(self, case: Case, x: Tensor, columns: Tensor) -> Tensor:
        """Return an input of the case's shape that is 0 besides these columns."""
        shape = [*x.shape]
        shape[self.features] = self.shapes(self.baseline, case)["x"][self.features]
        return x.new_zeros(shape).index_copy(self.features, columns, x)

    def narrowed(self, case: Case, tensor: Tensor, columns: Tensor) -> Tensor:
        """Return these columns of a weight, of its parameter, or of their gradients."""
        return tensor.index_select(1, columns)

    def part(
        self, case: Case, way: Way, passes: tuple[Pass, Pass], x: Tensor, columns: Tensor
    ) -> tuple[Way, tuple[Pass, Pass]]:
        """Return these columns of a layer and of its passes; ``x`` is their input."""
        names = ("weight", self.parameter)

        def cut(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: self.narrowed(case, tensors[name].detach(), columns) for name in names if name in tensors}

        def narrow(found: Pass) -> Pass:
            dx = found.grads.get("x")
            grads = {} if dx is None else {"x": dx.index_select(self.features, columns)}
            return dataclasses.replace(found, x=x.detach(), grads={**grads, **cut(found.grads)})

        return dataclasses.replace(way, tensors=cut(way.tensors)), (narrow(passes[0]), narrow(passes[1]))

    def elsewhere(self, case: Case, found: Pass, columns: Tensor) -> str | None:
        """Return a text if weights that multiply nothing but 0 have a gradient."""
        grad = found.grads.get("weight")
        wrong = grad is not None and torch.count_nonzero(grad) > torch.count_nonzero(self.narrowed(case, grad, columns))
        return "weights whose inputs are 0 have a gradient" if wrong else None

    def joined(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return tensors, or their gradients, with one weight and one parameter, of a layer that has several."""
        return tensors

    def biased(self, way: Way) -> str | None:
        """Return what is wrong with the bias and its gradient, or None: with no input the output is the bias."""
        if "bias" not in way.tensors:
            return None
        x, bias = (way.tensors[name].detach() for name in ("x", "bias"))
        former = x.clone()
        x.zero_()
        bias.copy_(torch.linspace(1, 2, len(bias)))
        found, beside = self.ran(way), self._beside(bias, way)
        x.copy_(former)
        wrong = near("bias", found.y + beside, beside.double().expand_as(found.y), found.dtype)
        expected = found.grad.double().sum_to_size(beside.shape).flatten()
        return wrong or near("gradient of bias", found.grads["bias"], expected, found.dtype)

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
        weight, logits = self._weights(way)
        equal = torch.equal(one.sampled != 0, self.contract(small, logits) & (weight != 0))
        way = self.make(contender, case, weight.device)
        weight, logits = self._weights(way)
        keep = self.contract(case, logits)
        wrong = self.known(case, weight, logits, keep, self.ran(way))
        return Verdict(wrong, bits_equal=equal and self.keeps(way, keep))

    def _weights(self, way: Way) -> tuple[Tensor, Tensor]:
        tensors = self.joined(way.tensors)
        return tensors["weight"].detach(), tensors["logits"].detach()

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
        y = y.detach()
        if "bias" in way.tensors:
            y = y - self._beside(way.tensors["bias"].detach(), way)
        return Pass(way.tensors["x"].detach(), y, way.grad, self.joined(grads), self.product)

    def work(self, case: Case, part: str) -> Work:
        """Count 2 M N K operations a product, and every operand and result once; logits are read in each direction."""
        rows, cols, tokens = (case.shape[name] for name in ("rows", "cols", "tokens"))
        return product_work(case, part, 2 * tokens * rows * cols, rows * cols, tokens * (rows + cols))


def choice(count: int, wanted: int) -> Tensor:
    """Return so many of the numbers 0 .. count - 1 in order, at least one and at most all, always the same."""
    mixed = torch.randperm(count, generator=torch.Generator().manual_seed(4))
    return mixed[: max(1, wanted)].sort().values


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
