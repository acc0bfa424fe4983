"""Where masks come from, as values: everything below the public functions passes these on instead of loose integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NewType

from torch import Tensor

from stochprune import rng

Logits = NewType("Logits", Tensor)
"""Logits of keep probabilities. A type of their own, so that type checkers tell them from the weight."""

Needs = tuple[bool, bool, bool]
"""Which gradients of a product are needed: those of x, weight and logits."""


class Mask(NamedTuple):
    """The masks of one weight matrix, one for each element of ``draw``, and what their estimator makes of them.

    ``row`` and ``col`` are the offsets of a shard: the contract's row and column of the matrix's first weight.
    """

    seed: Tensor  # int64 [1], the bits of a uint64; on the device of the weight
    draw: Tensor  # int64 [D], 0 .. 2^32 - 1; on the device of the weight
    stream: int  # 0 .. 2^31 - 1
    estimator: str = "straight_through"
    temperature: float = 1.0
    row: int = 0  # 0 .. 2^32 - 1
    col: int = 0  # 0 .. 2^34 - 1

    def part(self, draws: slice) -> Mask:
        """Return the masks of some draws."""
        return Mask(self.seed, self.draw[draws], *self[2:])

    def one(self, index: int) -> Mask:
        """Return the mask of one draw."""
        return self.part(slice(index, index + 1))

    def uniform16(self, rows: int, cols: int) -> Tensor:
        """int32 [rows, cols]: the sixteen random bits of each weight under the first draw, on its device."""
        return rng.uniform16(rows, cols, **self._contract())

    def normal(self, rows: int, cols: int) -> Tensor:
        """float64 [rows, cols]: the standard normal of each weight under the first draw, on its device."""
        return rng.normal(rows, cols, **self._contract())

    def _contract(self) -> dict[str, Any]:
        at = {"seed": self.seed, "draw": self.draw[0], "stream": self.stream}
        return {**at, "row_offset": self.row, "col_offset": self.col}


class Masks(NamedTuple):
    """One mask for each of L layers, under one estimator."""

    seeds: Tensor  # int64 [L]
    draws: Tensor  # int64 [L]
    streams: Sequence[int]
    estimator: str
    temperature: float
    rows: Sequence[int]  # offsets of the shards, as in Mask
    cols: Sequence[int]

    def one(self, index: int) -> Mask:
        """Return the mask of one layer."""
        at = slice(index, index + 1)
        options = (self.estimator, self.temperature, self.rows[index], self.cols[index])
        return Mask(self.seeds[at], self.draws[at], self.streams[index], *options)


class KLTerm(NamedTuple):
    """The KL divergence of a layer's masks from those of a prior, as a part of the loss."""

    prior_logits: Logits  # [N, K]
    grad: Tensor  # float64, one element: the loss's derivative for the divergence
