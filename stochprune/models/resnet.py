"""Residual networks of basic blocks (He, Zhang, Ren and Sun 2016, arXiv 1512.03385)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from stochprune.models.initialise import builder, initialised


class BasicBlock(nn.Module):
    """Two 3x3 convolutions plus a shortcut: the identity, or a 1x1 projection if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


@builder
def resnet20(in_channels: int = 3, num_classes: int = 10, *, width: int = 16, seed: int) -> nn.Sequential:
    """ResNet-20 of He et al. 2016, section 4.2, for images of about 32 x 32: three stages of three blocks.

    272 thousand parameters. The shortcuts that change the shape are 1x1 projections with batch normalisation (option
    B), as in ``open_lth`` (Frankle), rather than zero padding (option A). Initialised by
    :func:`stochprune.models.initialise.initialised`.

    Args:
        in_channels: of the images [B, in_channels, H, W].
        num_classes: number of outputs.
        width: channels of the first stage; doubled in each of the other two.
        seed: 0 .. 2^64 - 1.
    """
    return initialised(lambda: _resnet(_small_stem(in_channels, width), (3, 3, 3), width, num_classes), seed)


@builder
def resnet18(
    in_channels: int = 3, num_classes: int = 10, *, width: int = 64, small_images: bool = True, seed: int
) -> nn.Sequential:
    """ResNet-18: four stages of two blocks.

    11.7 million parameters with 1000 classes. Initialised by :func:`stochprune.models.initialise.initialised`.

    Args:
        in_channels, num_classes, seed: as for :func:`resnet20`.
        width: channels of the first stage; doubled in each of the other three.
        small_images: start with a 3x3 convolution, as is usual on CIFAR and Tiny ImageNet, instead of the 7x7
            convolution of stride 2 and the maximum pooling of stride 2 of the original.
    """
    stem = _small_stem if small_images else _large_stem
    return initialised(lambda: _resnet(stem(in_channels, width), (2, 2, 2, 2), width, num_classes), seed)


def _small_stem(in_channels: int, width: int) -> OrderedDict[str, nn.Module]:
    return OrderedDict(
        conv1=nn.Conv2d(in_channels, width, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(width), relu=nn.ReLU()
    )


def _large_stem(in_channels: int, width: int) -> OrderedDict[str, nn.Module]:
    return OrderedDict(
        conv1=nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
    )


def _resnet(layers: OrderedDict[str, nn.Module], blocks: Sequence[int], width: int, num_classes: int) -> nn.Sequential:
    inputs = width
    for stage, count in enumerate(blocks):
        outputs = width << stage
        layers[f"layer{stage + 1}"] = nn.Sequential(
            *(BasicBlock(outputs if i else inputs, outputs, 2 if stage and not i else 1) for i in range(count))
        )
        inputs = outputs
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(inputs, num_classes))
    return nn.Sequential(layers)
