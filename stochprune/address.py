"""The addresses of masks as values. All code below the public functions passes these instead of single integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NewType

from torch import Tensor

from stochprune import rng

Logits = NewType("Logits", Tensor)
"""Logits of keep probabilities. They have their own type, so that type checkers can tell them from the weight."""


class Mask(NamedTuple):
    """The masks of one weight matrix, one for each element of ``draw``, and their gradient estimator.

    ``row`` and ``col`` are the offsets of a shard: the position of its first weight in the whole matrix.
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
        """Return the sixteen random bits of each weight under the first draw, int32 [rows, cols], on its device."""
        return rng.uniform16(rows, cols, **self._contract())

    def normal(self, rows: int, cols: int) -> Tensor:
        """Return the standard normal of each weight under the first draw, float64 [rows, cols], on its device."""
        return rng.normal(rows, cols, **self._contract())

    def _contract(self) -> dict[str, Any]:
        at = {"seed": self.seed, "draw": self.draw[0], "stream": self.stream}
        return {**at, "row_offset": self.row, "col_offset": self.col}


class Masks(NamedTuple):
    """One mask for each of L layers, with one estimator for all."""

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


Rows = Tensor | None
"""int64 [R]: the rows of a weight that an op works on; None for all rows."""
Memo = list[Any] | None
"""Intermediate results that one pass over a weight may append for the other."""
Needs2 = tuple[bool, bool]
Needs3 = tuple[bool, bool, bool]
"""True for each gradient that a backend must return: of weight and logits, or of x, weight and logits."""
Grads2 = tuple[Tensor | None, Tensor | None]
Grads3 = tuple[Tensor | None, Tensor | None, Tensor | None]
"""These gradients; None where a gradient is not needed."""


class KLTerm(NamedTuple):
    """The KL divergence between a layer's masks and a prior's masks, as a part of the loss."""

    prior_logits: Logits  # [N, K]
    grad: Tensor  # float64, one element: the derivative of the loss with respect to the divergence
