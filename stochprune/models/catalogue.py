"""The networks that are known by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from stochprune.models.mlp import lenet_300_100

BUILDERS: dict[str, Callable[[Sequence[int], int, int], nn.Module]] = {
    "lenet_300_100": lambda shape, num_classes, seed: lenet_300_100(math.prod(shape), num_classes, seed=seed),
}


def build(name: str, dataset_shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
    """The network called ``name`` for inputs of one shape.

    Args:
        dataset_shape: shape of one input, without the batch.
        num_classes: number of outputs.
        seed: 0 .. 2^64 - 1, of the initial weights.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in BUILDERS:
        raise ValueError(f"unknown model {name!r}; known are: {', '.join(BUILDERS)}")
    return BUILDERS[name](dataset_shape, num_classes, seed)
