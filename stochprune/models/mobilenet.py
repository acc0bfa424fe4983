"""MobileNet v2 for small images (Sandler, Howard, Zhu, Zhmoginov and Chen 2018, arXiv 1801.04381)."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from stochprune.models.initialise import builder, initialised

# Expansion, channels at width 1, blocks, stride of the first block; strides 1 where the paper has 2 for large images.
_STAGES = (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)


class InvertedResidual(nn.Module):
    """A 1x1 convolution to more channels, a 3x3 convolution of each channel, and a 1x1 convolution to fewer channels.

    The input is added where it has the output's shape.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * inputs
        self.expand = nn.Sequential() if expansion == 1 else _conv(inputs, hidden, 1)
        self.depthwise = _conv(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


@builder
def mobilenet_v2(in_channels: int = 3, num_classes: int = 10, *, width: float = 1.0, seed: int) -> nn.Sequential:
    """MobileNet v2 for images of about 32 x 32: three of the paper's five halvings of the image, no dropout.

    2.2 million parameters. Initialised by :func:`stochprune.models.initialise.initialised`.

    Args:
        in_channels: of the images [B, in_channels, H, W].
        num_classes: number of outputs.
        width: factor of all numbers of channels, which are rounded to a multiple of 8; the last layer keeps 1280.
        seed: 0 .. 2^64 - 1.

    Raises:
        ValueError: a width that is not positive.
    """
    if not width > 0:
        raise ValueError(f"mobilenet_v2: width must be positive, got {width}")

    def channels(count: int) -> int:
        return max(8, round(count * width / 8) * 8)

    def construct() -> nn.Sequential:
        inputs = channels(32)
        layers: OrderedDict[str, nn.Module] = OrderedDict(stem=_conv(in_channels, inputs, 3))
        for i, (expansion, count, blocks, stride) in enumerate(_STAGES, start=1):
            stage = nn.Sequential()
            for block in range(blocks):
                outputs = channels(count)
                stage.append(InvertedResidual(inputs, outputs, stride if block == 0 else 1, expansion))
                inputs = outputs
            layers[f"stage{i}"] = stage
        layers.update(head=_conv(inputs, 1280, 1), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
        layers["fc"] = nn.Linear(1280, num_classes)
        return nn.Sequential(layers)

    return initialised(construct, seed)
