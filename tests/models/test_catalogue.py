"""Networks by name."""

from __future__ import annotations

import pytest
import torch

from stochprune.models import build, lenet_300_100


def test_build_fits_the_network_to_the_data() -> None:
    model = build("lenet_300_100", (1, 8, 8), 7, 3)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    assert torch.equal(model.fc1.weight, lenet_300_100(64, 7, seed=3).fc1.weight)


def test_build_lists_the_known_names() -> None:
    with pytest.raises(ValueError, match="unknown model 'lenet'; known are: lenet_300_100"):
        build("lenet", (1, 8, 8), 10, 0)
