"""Scores on a GPU are those of the CPU."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from stochprune import masks, models, scores

NAMES = ("magnitude", "random", "snip", "grasp", "synflow", "iterative_snip", "force", "prospr", "wanda", "sparsegpt")
NAMES += ("dissipating_gradients", "k_starts")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("convolutional", [False, True])
def test_the_device_changes_nothing(name, convolutional, device):
    shape = (3, 16, 16)
    if convolutional:
        model = models.resnet20(3, 10, width=4, seed=0)
    else:
        model = models.lenet_300_100(math.prod(shape), 10, seed=0)
    model = model.double()
    x = torch.randn(60, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batches = list(zip(x.split(20), (torch.arange(60) % 10).split(20), strict=True))
    there = copy.deepcopy(model).to(device)
    here, found = (
        scores.compute(name, network, F.cross_entropy, batches, sparsity=0.8, seed=1) for network in (model, there)
    )
    for key, score in here.items():
        assert found[key].device.type == device.type
        torch.testing.assert_close(found[key].cpu(), score, rtol=1e-6, atol=1e-10 * score.abs().max().item())
    one, two = (masks.from_scores(value, 0.8, allow_empty=True) for value in (here, found))
    assert all(torch.equal(two[key].cpu(), one[key]) for key in one)
