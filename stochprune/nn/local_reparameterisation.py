"""Local reparameterisation as a mode of layers: a forward draws pre-activations in place of weights.

For Gaussian weights each pre-activation has its exact distribution (Kingma, Salimans and Welling 2015). For masks, and
for spike and slab, it is the normal of its mean and variance, the limit of many inputs (Wang and Manning 2013). What
shares weights loses its correlation: the examples of a batch, and the positions of a convolution, are drawn
independently. No network is drawn, so the mode serves the gradient in training alone, and never a certificate.
"""

from __future__ import annotations

from collections.abc import Mapping

from stochprune.nn.layer import MaskedLayer
from stochprune.nn.random_weights import RANDOM

_SERVED = {*RANDOM, *RANDOM.values()}


def reparameterise_locally(layers: Mapping[str, MaskedLayer], enabled: bool = True) -> None:
    """Choose what the following forwards draw: pre-activations (``enabled``), or masks and weights.

    A pre-activation is drawn at the layer's address: its row is the example, its column the position.

    Args:
        layers: by the names that errors give them.

    Raises:
        ValueError: a layer that is neither linear nor a convolution, or that has no mask for each weight.
    """
    for name, layer in layers.items():
        if enabled and type(layer) not in _SERVED:
            raise ValueError(
                f"local_reparameterisation serves linear layers and convolutions with a mask for each weight; "
                f"{name} is a {type(layer).__name__}"
            )
    for layer in layers.values():
        layer.local_reparameterisation = enabled
