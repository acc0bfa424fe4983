"""MaskedLinear: nn.Linear under a stochastic mask."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune import functional
from stochprune.nn.layer import Layer, MaskedLayer
from stochprune.shards import is_dtensor


class MaskedLinear(MaskedLayer):
    """``y = x (z * weight)^T + bias`` with a mask z that is drawn in each forward and never stored.

    Args:
        in_features, out_features, bias: as in :class:`torch.nn.Linear`; the other arguments as in
            :class:`stochprune.nn.layer.MaskedLayer`.

    Shape:
        input [..., in_features], output [..., out_features].

    Attributes:
        prior_logits: None, or the logits [out_features, in_features] of a prior's masks. A forward that draws then
            forms :meth:`divergence` from them too, and its gradient joins the weight's pass in backward.
    """

    dense_type = nn.Linear
    settings = ("in_features", "out_features", "bias")
    in_features: int
    out_features: int
    prior_logits: Tensor | None
    _formed: tuple[Tensor, int] | None = None  # a forward's divergence, and the version of its logits

    def _adopt(self, *args: Any, **options: Any) -> None:
        super()._adopt(*args, **options)
        self.register_buffer("prior_logits", None, persistent=False)

    def _dense_forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)

    def _masked_forward(self, x: Tensor, **at: Any) -> Tensor:
        weight, logits, bias = self._trained()
        prior_logits = self._buffers["prior_logits"]
        if prior_logits is None or is_dtensor(weight) or not (torch.is_grad_enabled() and logits.requires_grad):
            return functional.masked_linear(x, weight, logits, bias, **at)
        y, kl = functional.masked_linear_kl(x, weight, logits, prior_logits, bias, **at)
        self._formed = (kl, logits._version)
        return y

    def _local_forward(self, x: Tensor, **at: Any) -> Tensor:
        return functional.local_reparameterised_linear(x, self.weight, self.mask_logits, None, self.bias, **at)

    def divergence(self, prior_logits: Tensor | float) -> Tensor:
        """KL of this layer's mask from that of a prior, in nats: a float64 scalar, differentiable.

        Where gradients are recorded, it is that of the last forward, once, if that was of ``self.prior_logits`` under
        logits of the same version. A change through ``.data`` has no version: disable gradients to notice it.
        """
        formed, self._formed = self._formed, None
        if (
            torch.is_grad_enabled()
            and formed is not None
            and prior_logits is self.prior_logits
            and formed[1] == self.mask_logits._version
        ):
            return formed[0]
        return super().divergence(prior_logits)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_formed": None}

    @classmethod
    def from_linear(cls: type[Layer], linear: nn.Linear, keep: float | Tensor = 0.95, **options: Any) -> Layer:
        """See :meth:`from_dense`."""
        return cls.from_dense(linear, keep, **options)

    def to_linear(self, mask: Tensor | None = None) -> nn.Linear:
        """See :meth:`to_dense`."""
        dense = self.to_dense(mask)
        assert isinstance(dense, nn.Linear)
        return dense
