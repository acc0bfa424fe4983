"""MaskedLinear: nn.Linear under a stochastic mask."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stochprune import functional
from stochprune.nn.layer import Layer, MaskedLayer


class MaskedLinear(MaskedLayer):
    """``y = x (z * weight)^T + bias`` with a mask z that is drawn in each forward and never stored.

    Args:
        in_features, out_features, bias: as in :class:`torch.nn.Linear`; the other arguments as in
            :class:`stochprune.nn.layer.MaskedLayer`.

    Shape:
        input [..., in_features], output [..., out_features].
    """

    dense_type = nn.Linear
    settings = ("in_features", "out_features", "bias")
    in_features: int
    out_features: int

    def forward(self, x: Tensor) -> Tensor:
        if not self.samples_now:
            return F.linear(x, self.thresholded_weight(), self.bias)
        return functional.masked_linear(x, self.weight, self.mask_logits, self.bias, **self.address())

    @classmethod
    def from_linear(cls: type[Layer], linear: nn.Linear, keep: float | Tensor = 0.95, **options: Any) -> Layer:
        """See :meth:`from_dense`."""
        return cls.from_dense(linear, keep, **options)

    def to_linear(self, mask: Tensor | None = None) -> nn.Linear:
        """See :meth:`to_dense`."""
        dense = self.to_dense(mask)
        assert isinstance(dense, nn.Linear)
        return dense
