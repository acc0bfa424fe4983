"""A convolution under a Bernoulli mask: ours, and ways to write it in plain PyTorch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import functional

from ..case import DTYPES, Case, Work
from ..laws import Product
from . import linear_ways
from .layer import STREAM, Forward, LayerOp, Make, Within, choice, counter, product_work, random

KERNEL = 3
PROBE = {"examples": 4, "channels": 8, "filters": 32, "size": 4}
"""Sizes of the layer that is checked from outside."""
convolve: Any = partial(F.conv2d, padding=KERNEL // 2)


def _shown(x: Tensor, y: Tensor) -> Tensor:
    """Return the filters: the first image of a channel has one pixel, in the middle."""
    middle, channels = x.shape[-1] // 2, x.shape[1]
    seen = slice(middle - KERNEL // 2, middle + KERNEL // 2 + 1)
    return y[:channels, :, seen, seen].flip(-1, -2).transpose(0, 1)


class Conv2d(LayerOp):
    """``conv(x, m * weight) + bias`` with a kernel of 3 x 3 and padding 1; shape: examples, channels, filters, size."""

    laws: Mapping[str, str] = {"dense": "none", "ours": "bernoulli", "eager": "bernoulli", "compile": "bernoulli"}
    product = Product(convolve, _shown)

    def shapes(self, contender: str, case: Case) -> dict[str, tuple[int, ...]]:
        """Return the shapes of x, y, weight, logits and bias."""
        examples, channels, filters, size = (case.shape[name] for name in PROBE)
        weight = (filters, channels, KERNEL, KERNEL)
        x, y = (examples, channels, size, size), (examples, filters, size, size)
        return {"x": x, "y": y, "weight": weight, "parameter": weight, "bias": (filters,)}

    def small(self, case: Case) -> Case:
        """Return a small case, of which all weights are looked at."""
        return dataclasses.replace(case, shape={**case.shape, **PROBE})

    def shown(self, case: Case) -> tuple[Case, Tensor]:
        """Return the case of a part of the layer, and its channels."""
        examples, channels = case.shape["examples"], choice(case.shape["channels"], case.shape["examples"] // 2)
        shape = {**case.shape, "channels": len(channels), "examples": examples - len(channels)}
        return dataclasses.replace(case, shape=shape), channels

    def units(self, case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return images that begin with unit images, and a gradient of the output."""
        channels, size = case.shape["channels"], case.shape["size"]
        units = torch.zeros(channels, channels, size, size, device=device, dtype=DTYPES[case.dtype])
        units[torch.arange(channels), torch.arange(channels), size // 2, size // 2] = 1
        shapes = self.shapes(self.baseline, case)
        x, grad = random(2, case, device, shapes["x"], (channels + case.shape["examples"], *shapes["y"][1:]))
        return torch.cat([units, x]), grad

    def made(self, contender: str, case: Case, like: Tensor) -> tuple[Make, Within]:
        """Return the function that makes a contender, and no context."""
        return CONTENDERS[contender], contextlib.nullcontext

    def work(self, case: Case, part: str) -> Work:
        """Count two operations for each weight and pixel, with those of the border, and every tensor once."""
        examples, channels, filters, size = (case.shape[name] for name in PROBE)
        weights, pixels = filters * channels * KERNEL**2, examples * size**2
        return product_work(case, part, 2 * pixels * weights, weights, pixels * (channels + filters))


def ours(weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
    """Return a layer that calls stochprune.functional.masked_conv2d."""
    seed, draws = counter(weight.device)

    def forward(x: Tensor) -> Tensor:
        at: dict[str, Any] = {"seed": seed, "draw": draws(), "stream": STREAM, "padding": KERNEL // 2}
        return functional.masked_conv2d(x, weight, logits, bias, **at)

    return forward


CONTENDERS: dict[str, Make] = {
    "dense": partial(linear_ways.dense, product=convolve),
    "ours": ours,
    "eager": partial(linear_ways.eager, product=convolve),
    "compile": partial(linear_ways.compiled, product=convolve),
}
