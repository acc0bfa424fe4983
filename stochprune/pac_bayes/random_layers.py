"""Linear layers and convolutions whose weights are Gaussian, or Gaussian under a random mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune import functional
from stochprune.nn import MaskedConv1d, MaskedConv2d, MaskedConv3d, MaskedLinear
from stochprune.nn.layer import MaskedLayer, _move_hooks
from stochprune.nn.masked_conv import _MaskedConv


class RandomLayer(MaskedLayer):
    """A masked layer whose weights have normal noise too: the weight is the mean, softplus(rho) the deviation.

    With ``slab`` the masks stay. Without, the mean is that of the masked weight, q * weight, and there is no mask.
    """

    independent = False
    rho: Tensor
    slab: bool

    @property
    def samples_now(self) -> bool:
        """True in either mode: normal noise has no threshold."""
        return True

    @classmethod
    def of(cls, layer: MaskedLayer, sigma: float, slab: bool) -> RandomLayer:
        """The layer over copies of the parameters of ``layer``."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.__dict__.update({k: v for k, v in layer.__dict__.items() if not k.startswith("_")})
        _move_hooks(layer, made)
        q = 1.0 if slab else torch.sigmoid(layer.mask_logits)
        made.weight = nn.Parameter(layer.weight * q)
        # softplus(rho) = sigma in float64 to the last digit that float32 holds
        rho = torch.tensor(sigma, dtype=torch.float64).expm1().log()
        made.rho = nn.Parameter(torch.full_like(layer.weight, rho.item()))
        made.mask_logits = nn.Parameter(layer.mask_logits.clone(), requires_grad=slab)
        made.bias = layer.bias
        for name in ("mask_seed", "mask_draw"):
            made.register_buffer(name, getattr(layer, name))
        made.slab = slab
        return made

    @property
    def sigma(self) -> Tensor:
        """The standard deviations, like the weight, float64."""
        return nn.functional.softplus(self.rho.double())

    @property
    def slab_logits(self) -> Tensor | None:
        """The logits of the masks, None where nothing is masked."""
        return self.mask_logits if self.slab else None


class RandomLinear(RandomLayer, MaskedLinear):
    """The linear layer, x [..., in_features] or with D draws [D, ..., in_features]."""

    def _masked_forward(self, x: Tensor, **at: Any) -> Tensor:
        weights = (self.weight, self.rho, self.slab_logits, self.bias)
        return functional.spike_and_slab_linear(x, *weights, **at)


class _RandomConv(RandomLayer, _MaskedConv):
    """The convolutions, x [M, in_channels, *S] or with D draws [D, M, in_channels, *S]; all padding of MaskedConv."""

    def _masked_forward(self, x: Tensor, output_size: Any = None, **at: Any) -> Tensor:
        weights = (self.weight, self.rho, self.slab_logits, self.bias)
        return convolved(self, functional.spike_and_slab_conv, x, *weights, **at)


class RandomConv1d(_RandomConv, MaskedConv1d):
    __doc__ = _RandomConv.__doc__


class RandomConv2d(_RandomConv, MaskedConv2d):
    __doc__ = _RandomConv.__doc__


class RandomConv3d(_RandomConv, MaskedConv3d):
    __doc__ = _RandomConv.__doc__


RANDOM: dict[type[MaskedLayer], type[RandomLayer]] = {  # and no subclass, whose masks may be of another kind
    MaskedLinear: RandomLinear,
    MaskedConv1d: RandomConv1d,
    MaskedConv2d: RandomConv2d,
    MaskedConv3d: RandomConv3d,
}


def convolved(layer: _MaskedConv, op: Callable[..., Tensor], x: Tensor, *weights: Tensor | None, **at: Any) -> Tensor:
    """``op`` with the geometry of ``layer``; padding by name, which the ops of random weights do not know, is done."""
    if x.dim() < layer.weight.dim():  # one example without a batch, [C, *S]
        return convolved(layer, op, x.unsqueeze(0), *weights, **at).squeeze(0)
    x, geometry = layer._placed(x)
    if isinstance(geometry["padding"], str):
        x, geometry["padding"] = F.pad(x, layer._sides()), 0
    return op(x, *weights, **at, **geometry)
