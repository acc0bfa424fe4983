"""Which masks an op draws, how the estimator reads them, and the prior from which they may diverge."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Mask(NamedTuple):
    """The masks of one layer, one for each element of ``draw``; the numbers stay on the device."""

    seed: Tensor  # int64 [1], the bits of a uint64
    draw: Tensor  # int64 [D], 0 .. 2^32 - 1
    stream: int
    estimator: str
    temperature: float

    def part(self, draws: slice) -> Mask:
        """The masks of some draws."""
        return self._replace(draw=self.draw[draws])

    def one(self, index: int) -> Mask:
        """The mask of one draw."""
        return self.part(slice(index, index + 1))


class Divergence(NamedTuple):
    """KL from a prior's masks, whose gradient is added to that of the logits."""

    prior: Tensor  # logits [N, K]
    grad: Tensor  # float64, one element: dL/dKL

    @staticmethod
    def arguments(divergence: Divergence | None) -> tuple[Tensor | None, Tensor | None, int, int]:
        """What the kernels take: the two addresses and the prior's strides."""
        if divergence is None:
            return None, None, 0, 0
        return divergence.prior, divergence.grad, *divergence.prior.stride()
