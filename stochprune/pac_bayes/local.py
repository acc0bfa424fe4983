"""Local reparameterisation in training: layers that draw pre-activations in place of their weights.

Of Gaussian weights each pre-activation has its exact distribution (Kingma, Salimans and Welling 2015), of masks and of
spikes and slabs the normal of its mean and variance, the limit of many inputs (Wang and Manning 2013). What weights
share is lost: examples are drawn apart, and so are the positions of a convolution. No network is drawn, so that this
serves the training's gradient alone, and never a certificate.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stochprune import functional
from stochprune.nn import MaskedLinear
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.masked_conv import _MaskedConv
from stochprune.pac_bayes.random_layers import RANDOM, RandomLayer, convolved

_HOOK = "_masked_forward"  # what a layer that draws calls
LOCAL = "local_reparameterisation"
"""Its name among the estimators of :class:`stochprune.pac_bayes.SelfBoundConfig`."""


def draw_pre_activations(layers: Mapping[str, MaskedLayer]) -> None:
    """From now on a forward draws each pre-activation, at the layer's address: row the example, column the position.

    Raises:
        ValueError: a layer that is neither linear nor a convolution, or whose masks are of another kind.
    """
    for name, layer in layers.items():
        if type(layer) not in RANDOM and type(layer) not in RANDOM.values():
            raise ValueError(
                f"{LOCAL} serves linear layers and convolutions with a mask for each weight; "
                f"{name} is a {type(layer).__name__}"
            )
    for layer in layers.values():
        setattr(layer, _HOOK, functools.partial(_forward, layer))


def draw_weights(layers: Mapping[str, MaskedLayer]) -> None:
    """From now on a forward draws a network again."""
    for layer in layers.values():
        vars(layer).pop(_HOOK, None)


def _forward(layer: MaskedLayer, x: Tensor, *, estimator: str, temperature: float, **at: Any) -> Tensor:
    logits, rho = (layer.slab_logits, layer.rho) if isinstance(layer, RandomLayer) else (layer.mask_logits, None)
    weights = (layer.weight, logits, rho, layer.bias)
    if isinstance(layer, MaskedLinear):
        return functional.local_reparameterised_linear(x, *weights, **at)
    assert isinstance(layer, _MaskedConv)
    return convolved(layer, functional.local_reparameterised_conv, x, *weights, **at)
