"""Fully connected networks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from stochprune.models.initialise import builder, initialised


@builder
def mlp(sizes: Sequence[int], *, seed: int) -> nn.Sequential:
    """Linear layers ``fc1``, ``fc2``, ... with ReLU between them, on flattened inputs.

    Weights are Kaiming normal, each layer with its own generator made from ``seed``; biases are 0.

    Args:
        sizes: input features, hidden widths, outputs.
        seed: 0 .. 2^64 - 1.

    Raises:
        ValueError: fewer than two sizes, or one below 1.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes must be two or more positive integers, got {tuple(sizes)}")

    def construct() -> nn.Sequential:
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for i, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
            if i > 1:
                layers[f"relu{i - 1}"] = nn.ReLU()
            layers[f"fc{i}"] = nn.Linear(inputs, outputs)
        return nn.Sequential(layers)

    return initialised(construct, seed)


@builder
def lenet_300_100(in_features: int = 784, num_classes: int = 10, *, seed: int) -> nn.Sequential:
    """LeNet-300-100 (LeCun, Bottou, Bengio and Haffner 1998) with ReLU, as in the pruning literature.

    266,200 weights with the default sizes. See :func:`mlp` for names and initialisation.
    """
    return mlp((in_features, 300, 100, num_classes), seed=seed)
