"""Residual networks: sizes of the literature, strides, and the blocks' arithmetic."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stochprune.models import resnet18, resnet20
from stochprune.models.resnet import BasicBlock


def test_parameters_of_the_literature() -> None:
    # Option A has 269,722; the two projections add 16 * 32 + 32 * 64 weights and 2 * (32 + 64) of normalisation.
    assert sum(p.numel() for p in resnet20(seed=0).parameters()) == 269_722 + 2_560 + 192
    assert sum(p.numel() for p in resnet18(num_classes=1000, small_images=False, seed=0).parameters()) == 11_689_512


def test_stages_halve_the_image() -> None:
    small, large = resnet20(1, width=2, seed=0), resnet18(1, width=2, small_images=False, seed=0)
    assert small[:-3](torch.zeros(1, 1, 32, 32)).shape == (1, 8, 8, 8)
    assert large[:-3](torch.zeros(1, 1, 224, 224)).shape == (1, 16, 7, 7)
    assert len([m for m in small.modules() if isinstance(m, BasicBlock)]) == 9


def test_a_block_adds_its_branch_to_its_shortcut() -> None:
    x = torch.linspace(-2, 2, 3 * 4 * 6 * 6).view(3, 4, 6, 6)
    for block in (resnet20(width=4, seed=1).layer1[0].eval(), resnet20(width=4, seed=1).layer2[0].eval()):
        stride = block.conv1.stride
        scale = (1 + 1e-5) ** -0.5  # of normalisation at its start
        y = F.relu(F.conv2d(x, block.conv1.weight, stride=stride, padding=1) * scale)
        y = F.conv2d(y, block.conv2.weight, padding=1) * scale
        identity = F.conv2d(x, block.shortcut[0].weight, stride=stride) * scale if len(block.shortcut) else x
        torch.testing.assert_close(block(x), F.relu(y + identity))
