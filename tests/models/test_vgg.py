"""VGG-16 and its small relative: their sizes and their stages."""

from __future__ import annotations

import torch
from torch import nn

from stochprune.models import vgg6, vgg16


def test_parameters_of_the_literature() -> None:
    model = vgg16(seed=0)
    # 14,728,266 with the biases that normalisation makes void: one for each of the 4,224 channels.
    assert sum(p.numel() for p in model.parameters()) == 14_728_266 - 4_224
    assert len([m for m in model.modules() if isinstance(m, nn.Conv2d)]) == 13


def test_the_small_one() -> None:
    model = vgg6(seed=0)
    convolutions = 9 * (3 * 32 + 32 * 64 + 64 * 128 + 128 * 128 + 128 * 256)
    normalised = 2 * (32 + 64 + 128 + 128 + 256)
    assert sum(p.numel() for p in model.parameters()) == convolutions + normalised + 257 * 10
    assert model.features(torch.zeros(1, 3, 32, 32)).shape == (1, 256, 4, 4)


def test_the_image_is_halved_between_stages() -> None:
    assert vgg16(1, width=2, seed=0).features(torch.zeros(1, 1, 32, 32)).shape == (1, 16, 2, 2)
