"""Rows of a table under a Bernoulli mask: ours, and ways to write it in plain PyTorch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import functional

from ..case import DTYPES, Case, Work
from ..laws import Product
from . import linear_ways
from .layer import STREAM, Forward, LayerOp, Make, Within, choice, counter, random

LOOKED_UP = "eager, rows looked up"


def look_up(indices: Tensor, weight: Tensor, bias: None = None) -> Tensor:
    """Return rows of a table; as the ways to write a linear layer need it, without a bias."""
    return F.embedding(indices, weight)


class Embedding(LayerOp):
    """``(m * weight)[indices]``; shape: rows, cols, tokens.

    ``eager`` masks the whole table, ``eager, rows looked up`` only the rows that the indices name, each once. Both have
    the same law: a token that occurs twice has one mask.
    """

    laws: Mapping[str, str] = {
        "dense": "none",
        "ours": "bernoulli",
        "eager": "bernoulli",
        LOOKED_UP: "bernoulli",
        "bernoulli": "bernoulli",
        "compile": "bernoulli",
    }
    product = Product(look_up, lambda indices, y: y[: int(indices.max()) + 1])

    def shapes(self, contender: str, case: Case) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the indices, y, weight and logits."""
        rows, cols, tokens = (case.shape[name] for name in ("rows", "cols", "tokens"))
        return {"x": (tokens,), "y": (tokens, cols), "weight": (rows, cols), "parameter": (rows, cols)}

    def inputs(self, case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return indices, and a gradient of the output."""
        [grad] = random(0, case, device, self.shapes(self.baseline, case)["y"])
        return _indices(case).to(device), grad

    def units(self, case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return indices that begin with each row of the table, and a gradient of the output."""
        rows, cols, tokens = (case.shape[name] for name in ("rows", "cols", "tokens"))
        [grad] = random(2, case, device, (rows + tokens, cols))
        return torch.cat([torch.arange(rows), _indices(case)]).to(device), grad

    def shown(self, case: Case) -> tuple[Case, Tensor]:
        """Return the case of a part of the table, and its rows."""
        tokens = case.shape["tokens"]
        rows = choice(case.shape["rows"], tokens // 2)
        shape = {**case.shape, "rows": len(rows), "tokens": tokens - len(rows)}
        return dataclasses.replace(case, shape=shape), rows

    def spread(self, case: Case, x: Tensor, columns: Tensor) -> Tensor:
        """Return the indices of the rows in the whole table."""
        return columns[x]

    def narrowed(self, case: Case, tensor: Tensor, columns: Tensor) -> Tensor:
        """Return these rows of a table, of its logits, or of their gradients."""
        return tensor.index_select(0, columns)

    def made(self, contender: str, case: Case, like: Tensor) -> tuple[Make, Within]:
        """Return the function that makes a contender, and no context."""
        return CONTENDERS[contender], contextlib.nullcontext

    def work(self, case: Case, part: str) -> Work:
        """Count the rows that are looked up in each direction, and dense gradients, which are written once."""
        rows, cols, tokens = (case.shape[name] for name in ("rows", "cols", "tokens"))
        size = DTYPES[case.dtype].itemsize
        read = size * cols * (2 * min(rows, tokens) + tokens)
        written = size * rows * cols * (2 if case.mode == "joint" else 1)
        return Work(0, {"forward": read, "backward": read + written, "step": 2 * read + written}[part])


def _indices(case: Case) -> Tensor:
    numbers = torch.Generator().manual_seed(5)
    return torch.randint(case.shape["rows"], (case.shape["tokens"],), generator=numbers)


def looked_up(weight: Tensor, logits: Tensor) -> Forward:
    """Return the layer in plain PyTorch that masks each row once that is looked up, and no other."""

    def forward(indices: Tensor) -> Tensor:
        rows, places = indices.unique(return_inverse=True)
        return F.embedding(places, linear_ways.straight_through(weight[rows], logits[rows]))

    return forward


def ours(weight: Tensor, logits: Tensor) -> Forward:
    """Return a layer that calls stochprune.functional.masked_embedding."""
    seed, draws = counter(weight.device)

    def forward(indices: Tensor) -> Tensor:
        return functional.masked_embedding(indices, weight, logits, seed=seed, draw=draws(), stream=STREAM)

    return forward


CONTENDERS: dict[str, Make] = {
    "dense": partial(linear_ways.dense, product=look_up),
    "ours": ours,
    "eager": partial(linear_ways.eager, product=look_up),
    LOOKED_UP: looked_up,
    "bernoulli": partial(linear_ways.bernoulli, product=look_up),
    "compile": partial(linear_ways.compiled, product=look_up),
}
