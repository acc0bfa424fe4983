"""One layer's weight under its mask, and the gradients through the mask, in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.native.arrays import ESTIMATORS, Array, array, key, rows_of
from stochprune.native.thresholds import cache


class MaskedWeight:
    """What the products of one layer share: its weight and logits [N, ...] under one seed and estimator.

    Trailing dimensions are flattened to columns. With ``rows`` (int64 [R]) only those rows are looked at.
    """

    def __init__(
        self,
        weight: Tensor,
        logits: Tensor,
        seed: Tensor,
        stream: int,
        estimator: str,
        temperature: float,
        rows: Tensor | None = None,
    ) -> None:
        self.hard = estimator.startswith("straight_through")
        self.weight, self.logits = rows_of(weight.detach().flatten(1)), rows_of(logits.detach().flatten(1))
        levels = cache.get(logits) if self.hard else None
        self.thresholds = None if levels is None else levels.flatten(1)
        if rows is not None:
            self.weight, self.logits = self.weight[rows], self.logits[rows]
            self.thresholds = None if self.thresholds is None else self.thresholds[rows]
        self.shape = tuple(self.weight.shape)
        self.seed, self.stream, self.row_addresses = seed, stream, rows
        self.relaxation = (ESTIMATORS[estimator], temperature)

    def address(self, draw: Tensor, row: int) -> tuple[int, int, int, int, int]:
        """The contract's address of the first weight of ``row``."""
        return key(self.seed, draw, self.stream, row)

    def gathered(self, part: slice) -> int:
        """The address of the contract's rows of the rows in ``part``; 0 if they follow each other."""
        return 0 if self.row_addresses is None else self.row_addresses[part].data_ptr()

    def rows(self, part: slice) -> tuple[Array, Array, Array]:
        """The arrays of weight, logits and thresholds."""
        levels = None if self.thresholds is None else self.thresholds[part]
        return array(self.weight[part]), array(self.logits[part]), array(levels)

    def bits(self, part: slice) -> Tensor | None:
        """Uninitialised room for the hard mask of the rows in ``part``, one bit a weight; None if z is not hard."""
        groups = -(-self.shape[1] // 64)
        return torch.empty(part.stop - part.start, groups, dtype=torch.int64) if self.hard else None

    def write(self, draw: Tensor, part: slice, out: Tensor, bits: Tensor | None = None) -> Tensor:
        """z * weight of the rows in ``part`` to ``out``, in its dtype; a hard mask also to ``bits``."""
        if _C.masked_weight(
            self.address(draw, part.start),
            tuple(out.shape),
            *self.relaxation,
            *self.rows(part),
            array(out),
            array(bits),
            torch.get_num_threads(),
            self.gathered(part),
        ):
            raise ValueError("logits contain NaN")
        return out

    def gradients(
        self,
        draw: Tensor,
        part: slice,
        grad: Tensor,
        bits: Tensor | None,
        dweight: Tensor | None,
        dlogits: Tensor | None,
        accumulate: bool,
        divergence: tuple[Tensor, float] | None = None,
    ) -> None:
        """From grad = dL/d(z * weight) of the rows in ``part`` to dweight and dlogits; either may be grad itself.

        A hard mask is taken from ``bits`` if given, else drawn. ``divergence``: prior logits [N, K], of dense rows, and
        the gradient of the masks' divergence from them, whose own gradient is added to dlogits.
        """
        prior, scale = divergence or (None, 0.0)
        weight, logits, levels = self.rows(part)
        _C.weight_grad(
            self.address(draw, part.start),
            tuple(grad.shape),
            *self.relaxation,
            array(grad),
            weight,
            logits,
            levels,
            array(bits),
            array(None if prior is None else prior[part]),
            scale,
            array(None if dweight is None else dweight[part]),
            array(None if dlogits is None else dlogits[part]),
            accumulate,
            torch.get_num_threads(),
            self.gathered(part),
        )
