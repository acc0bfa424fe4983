"""VGG-16: its size and its stages."""

from __future__ import annotations

import torch
from torch import nn

from stochprune.models import vgg16


def test_parameters_of_the_literature() -> None:
    model = vgg16(seed=0)
    # 14,728,266 with the biases that normalisation makes void: one for each of the 4,224 channels.
    assert sum(p.numel() for p in model.parameters()) == 14_728_266 - 4_224
    assert len([m for m in model.modules() if isinstance(m, nn.Conv2d)]) == 13


def test_the_image_is_halved_between_stages() -> None:
    assert vgg16(1, width=2, seed=0).features(torch.zeros(1, 1, 32, 32)).shape == (1, 16, 2, 2)
