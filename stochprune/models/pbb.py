"""The deterministic networks of "Tighter risk certificates for neural networks" (Perez-Ortiz, Rivasplata, Shawe-Taylor
and Szepesvari 2021, arXiv 2007.12911), after the authors' code."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from stochprune.models.initialise import builder, initialised
from stochprune.models.mlp import mlp


@builder
def pbb_fc(in_features: int = 784, num_classes: int = 10, *, seed: int) -> nn.Sequential:
    """Three hidden layers of 600: 1,196,400 weights with the default sizes. See :func:`stochprune.models.mlp.mlp`."""
    return mlp((in_features, 600, 600, 600, num_classes), seed=seed)


@builder
def pbb_cnn(in_channels: int = 1, size: tuple[int, int] = (28, 28), num_classes: int = 10, *, seed: int) -> nn.Module:
    """Two 3x3 convolutions (32, 64 channels), maximum pooling by 2, linear layers of 128 and ``num_classes``.

    Args:
        in_channels, size: of the images [B, in_channels, *size], at least 6 pixels high and wide.
        num_classes: number of outputs.
        seed: 0 .. 2^64 - 1.
    """
    if min(size) < 6:
        raise ValueError(f"pbb_cnn: images must be at least 6 pixels high and wide, got {size[0]} x {size[1]}")
    pixels = 1
    for length in size:
        pixels *= (length - 4) // 2

    def construct() -> nn.Sequential:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(in_channels, 32, 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3),
            pool=nn.MaxPool2d(2),  # before the ReLU: the same values, a quarter of the work
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * pixels, 128),
            relu3=nn.ReLU(),
            fc2=nn.Linear(128, num_classes),
        )
        return nn.Sequential(layers)

    return initialised(construct, seed)
