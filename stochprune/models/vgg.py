"""VGG with batch normalisation (Simonyan and Zisserman 2015, arXiv 1409.1556), for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from stochprune.models.initialise import builder, initialised


@builder
def vgg16(in_channels: int = 3, num_classes: int = 10, *, width: int = 64, seed: int) -> nn.Sequential:
    """VGG-16 for images of about 32 x 32, as in the pruning literature (``open_lth``, SynFlow).

    Thirteen 3x3 convolutions with batch normalisation in five stages, maximum pooling between the stages, global
    average pooling and one linear layer instead of three: 14.7 million parameters. Initialised by
    :func:`stochprune.models.initialise.initialised`.

    Args:
        in_channels: of the images [B, in_channels, H, W], H and W at least 16.
        num_classes: number of outputs.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        seed: 0 .. 2^64 - 1.
    """
    return _vgg(((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8)), in_channels, num_classes, width, seed)


@builder
def vgg6(in_channels: int = 3, num_classes: int = 10, *, width: int = 32, seed: int) -> nn.Sequential:
    """A small VGG for one processor core: five convolutions, otherwise as :func:`vgg16`; 0.5 million parameters.

    An image of 32 x 32 takes 25 million multiplications, of ``resnet20`` 41 million.

    Args:
        in_channels: of the images [B, in_channels, H, W], H and W at least 8.
        num_classes: number of outputs.
        width: channels of the first convolution; the others have 2, 4, 4 and 8 times as many.
        seed: 0 .. 2^64 - 1.
    """
    return _vgg(((1,), (2,), (4, 4), (8,)), in_channels, num_classes, width, seed)


def _vgg(stages: Sequence[Sequence[int]], in_channels: int, num_classes: int, width: int, seed: int) -> nn.Sequential:
    """Build a VGG; ``stages`` has, for each stage, the output channels of its convolutions in multiples of width."""

    def construct() -> nn.Sequential:
        features = nn.Sequential()
        inputs = in_channels
        for stage, factors in enumerate(stages):
            if stage:
                features.append(nn.MaxPool2d(2))
            for factor in factors:
                outputs = factor * width
                # No bias: batch normalisation would subtract it.
                features.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
                features.extend([nn.BatchNorm2d(outputs), nn.ReLU()])
                inputs = outputs
        head = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(inputs, num_classes)}
        return nn.Sequential(OrderedDict(features=features, **head))

    return initialised(construct, seed)
