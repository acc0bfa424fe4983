"""The networks of Perez-Ortiz et al."""

from __future__ import annotations

import torch

from stochprune.models import pbb_cnn, pbb_fc


def test_sizes():
    assert sum(p.numel() for p in pbb_fc(seed=0).parameters() if p.dim() == 2) == 784 * 600 + 2 * 600**2 + 6000
    weights = {name: tuple(p.shape) for name, p in pbb_cnn(seed=0).named_parameters() if p.dim() > 1}
    assert weights == {
        "conv1.weight": (32, 1, 3, 3),
        "conv2.weight": (64, 32, 3, 3),
        "fc1.weight": (128, 9216),
        "fc2.weight": (10, 128),
    }


def test_other_images():
    assert pbb_cnn(3, (11, 14), 7, seed=0)(torch.zeros(2, 3, 11, 14)).shape == (2, 7)
