"""Several masks of one layer, each for its own inputs, as in the certificate of a random network."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from ..case import Case, Way, Work
from ..laws import Pass, Product
from . import linear_ways
from .layer import STREAM, Counter, Forward, LayerOp, Make, Within, contract_mask, counter, product_work

ALONE, VMAP = "ours, one by one", "vmap"
PROBED = 2
"""Draws of the layer that is checked from outside."""


class Draws(LayerOp):
    """A layer whose input [draws, ...] has a mask for each draw; shape: that of the layer, and draws.

    ``ours`` computes all draws in one call; ``eager`` and ``ours, one by one`` call the layer for each. ``dense`` has
    one weight for all of them.

    Args:
        one: the op of the layer.
        masked: our function of it, such as stochprune.functional.masked_linear.
    """

    laws: Mapping[str, str] = {
        "dense": "none",
        "ours": "bernoulli",
        ALONE: "bernoulli",
        "eager": "bernoulli",
        VMAP: "bernoulli",
    }

    def __init__(self, one: LayerOp, masked: Callable[..., Tensor]) -> None:
        self.one, self.masked = one, masked
        self.product, self.features = Product(self._apply, self._shown), one.features + 1

    def shapes(self, contender: str, case: Case) -> dict[str, tuple[int, ...]]:
        """Return the shapes of x, y, weight, logits and bias."""
        shapes, draws = self.one.shapes(contender, case), case.shape["draws"]
        return {**shapes, "x": (draws, *shapes["x"]), "y": (draws, *shapes["y"])}

    def small(self, case: Case) -> Case:
        """Return a small case, of which all weights are looked at."""
        return dataclasses.replace(case, shape={**self.one.small(case).shape, "draws": PROBED})

    def shown(self, case: Case) -> tuple[Case, Tensor] | None:
        """Return the case of a part of the layer, and the columns that it has of the weight."""
        return self.one.shown(case)

    def units(self, case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return an input whose draws begin with unit inputs, and a gradient of the output."""
        (x, grad), draws = self.one.units(case, device), case.shape["draws"]
        return torch.stack([x] * draws), torch.stack([grad.roll(d, 0) for d in range(draws)])

    def made(self, contender: str, case: Case, like: Tensor) -> tuple[Make, Within]:
        """Return the function that makes a contender, and no context."""
        dense = partial(linear_ways.dense, product=self.one.product.apply)
        eager = partial(linear_ways.eager, product=self.one.product.apply)
        made: dict[str, Make] = {
            "dense": partial(_one_by_one, dense),
            "eager": partial(_one_by_one, eager),
            VMAP: lambda *tensors: torch.vmap(eager(*tensors), randomness="different"),
            "ours": partial(self._ours, case.shape["draws"]),
            ALONE: partial(self._alone, case.shape["draws"]),
        }
        return made[contender], contextlib.nullcontext

    def wrong(self, contender: str, case: Case, way: Way, one: Pass, other: Pass) -> str | None:
        """Compare with the law of the contender; the draws of a pass have different masks."""
        keep = one.sampled != 0
        if self.laws[contender] != "none" and torch.equal(keep[0], keep[1]):
            return "two draws have the same mask"
        return super().wrong(contender, case, way, one, other)

    def contract(self, case: Case, logits: Tensor) -> Tensor:
        """Return the masks of the first pass by the slow text of the contract, bool [draws, ...]."""
        return torch.stack([contract_mask(logits, draw=d + 1) for d in range(case.shape["draws"])])

    def work(self, case: Case, part: str) -> Work:
        """Count the products of each draw, and every tensor once; one weight serves all draws."""
        shapes = self.shapes("ours", case)
        x, y, weight = (torch.Size(shapes[name]).numel() for name in ("x", "y", "weight"))
        one = self.one.work(case, "forward").flops
        return product_work(case, part, int(one) * case.shape["draws"], weight, x + y)

    def _ours(self, draws: int, weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
        """Return a layer that calls our function once for all draws."""
        return self._masked(torch.arange(1, draws + 1, device=weight.device), draws, weight, logits, bias)

    def _alone(self, draws: int, weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
        """Return a layer that calls our function for each draw."""
        firsts = torch.arange(1, draws + 1, device=weight.device).split(1)
        each = [self._masked(first, draws, weight, logits, bias) for first in firsts]
        return lambda x: torch.stack([forward(part) for forward, part in zip(each, x, strict=True)])

    def _masked(self, first: Tensor, step: int, weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
        """Return a layer whose draws grow by ``step`` from call to call."""
        seed, _ = counter(weight.device)
        draws = Counter(first, step)
        return lambda x: self.masked(x, weight, logits, bias, seed=seed, draw=draws(), stream=STREAM)

    def _apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply the product to each draw; the weights are [draws, ...], or the same for all."""
        weights = weight if weight.dim() == x.dim() else [weight] * len(x)
        return torch.stack([self.one.product.apply(part, w) for part, w in zip(x, weights, strict=True)])

    def _shown(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([self.one.product.shown(*pair) for pair in zip(x, y, strict=True)])


def _one_by_one(make: Make, weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
    """Return a layer that calls another one for each draw."""
    forward = make(weight, logits, bias)
    return lambda x: torch.stack([forward(part) for part in x])
