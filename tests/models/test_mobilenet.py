"""MobileNet v2: its size, and what depends on its width."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stochprune.models import mobilenet_v2


def test_parameters_of_the_literature() -> None:
    # 3,504,872 with 1000 classes, as in torchvision.
    assert sum(p.numel() for p in mobilenet_v2(num_classes=1000, seed=0).parameters()) == 3_504_872


def test_the_image_is_halved_three_times() -> None:
    model = mobilenet_v2(1, width=0.1, seed=0).eval()
    assert model[:-3](torch.zeros(1, 1, 32, 32)).shape == (1, 1280, 4, 4)
    depthwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(depthwise) == 17 and all(m.groups == m.in_channels for m in depthwise)


def test_a_width_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"width.*-1"):
        mobilenet_v2(width=-1.0, seed=0)
