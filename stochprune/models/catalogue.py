"""The networks and their names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from stochprune.models.cnn import small_cnn
from stochprune.models.gpt import gpt
from stochprune.models.initialise import builder
from stochprune.models.mlp import lenet_300_100
from stochprune.models.mobilenet import mobilenet_v2
from stochprune.models.pbb import pbb_cnn, pbb_fc
from stochprune.models.resnet import resnet18, resnet20
from stochprune.models.vgg import vgg6, vgg16
from stochprune.models.vit import vit

BUILDERS: dict[str, Callable[[Sequence[int], int, int], nn.Module]] = {
    "lenet_300_100": lambda shape, num_classes, seed: lenet_300_100(math.prod(shape), num_classes, seed=seed),
    "pbb_fc": lambda shape, num_classes, seed: pbb_fc(math.prod(shape), num_classes, seed=seed),
    "pbb_cnn": lambda shape, num_classes, seed: pbb_cnn(shape[0], (shape[1], shape[2]), num_classes, seed=seed),
    "small_cnn": lambda shape, num_classes, seed: small_cnn(shape[0], num_classes, seed=seed),
    "resnet20": lambda shape, num_classes, seed: resnet20(shape[0], num_classes, seed=seed),
    "resnet18": lambda shape, num_classes, seed: resnet18(
        shape[0], num_classes, small_images=max(shape[1:]) <= 64, seed=seed
    ),
    "vgg6": lambda shape, num_classes, seed: vgg6(shape[0], num_classes, seed=seed),
    "vgg16": lambda shape, num_classes, seed: vgg16(shape[0], num_classes, seed=seed),
    "mobilenet_v2": lambda shape, num_classes, seed: mobilenet_v2(shape[0], num_classes, seed=seed),
    "vit": lambda shape, num_classes, seed: vit(shape[0], (shape[1], shape[2]), num_classes, seed=seed),
    "gpt": lambda shape, num_classes, seed: gpt(num_classes, shape[0], seed=seed),
}
DIMENSIONS = {name: 3 for name in BUILDERS if name not in ("lenet_300_100", "pbb_fc")} | {"gpt": 1}
HELP = f"Network: {', '.join(name for name in BUILDERS if DIMENSIONS.get(name) != 1)}."
"""The help of each option that chooses a network of images."""


@builder
def build(name: str, dataset_shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
    """Build the network called ``name`` for inputs of one shape.

    Args:
        dataset_shape: shape of one input, without the batch: (channels, height, width) for networks of images,
            (context,) for ``gpt``, any for ``lenet_300_100`` and ``pbb_fc``.
        num_classes: number of outputs; number of tokens for ``gpt``.
        seed: seed of the initial weights, 0 .. 2^64 - 1.

    Raises:
        ValueError: an unknown name (the message lists the known names), or inputs of the wrong number of dimensions.
    """
    if name not in BUILDERS:
        raise ValueError(f"unknown model {name!r}; known are: {', '.join(BUILDERS)}")
    if len(dataset_shape) != DIMENSIONS.get(name, len(dataset_shape)):
        raise ValueError(f"{name} takes inputs of {DIMENSIONS[name]} dimensions, got shape {tuple(dataset_shape)}")
    return BUILDERS[name](dataset_shape, num_classes, seed)
