"""Cascade weight shedding: counts by hand, weights that nothing uses, resumption."""

from __future__ import annotations

import copy

import pytest
import torch

from stochprune import models
from stochprune.training import WeightConfig, WeightShedding, train_weights


@pytest.fixture
def network():
    return models.mlp((4, 8, 3), seed=0)


@pytest.fixture
def batches():
    numbers = torch.Generator().manual_seed(0)
    return [(torch.randn(32, 4, generator=numbers), torch.randint(0, 3, (32,), generator=numbers)) for _ in range(4)]


@pytest.fixture
def dead_half(network):
    """Masks that keep all of the first layer, but no outgoing weight of half of its units."""
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in network.named_parameters() if p.ndim == 2}
    masks["fc2.weight"][:, :4] = False
    return masks


def test_counts_by_hand(network, batches):
    """A rate of almost 0 leaves the weights as they are: 2 of 3 kept ones are near 0, and pruned ones do not count."""
    mask = torch.zeros(8, 4, dtype=torch.bool)
    mask[0, :3] = True
    with torch.no_grad():
        network.fc1.weight[0, :3] = torch.tensor([3.0, 1e-3, -1e-4])  # the root mean square is 1.7
    look = WeightShedding({"fc1.weight": mask}, tolerance=0.01)
    history = train_weights(network, batches, WeightConfig(1, lr=1e-12), masks={"fc1.weight": mask}, callbacks=[look])
    expected = {"shed": pytest.approx(2 / 3), "shed_fc1.weight": pytest.approx(2 / 3)}
    assert look.start == expected
    assert {key: value for key, value in history[-1].items() if key.startswith("shed")} == expected


def test_weights_that_nothing_uses_are_shed(network, batches, dead_half):
    """Weight decay moves the incoming weights of a unit without outgoing ones to 0, and no others."""
    look = WeightShedding(dead_half, tolerance=0.05)
    config = WeightConfig(30, lr=0.1, optimizer="sgd", weight_decay=0.03)
    history = train_weights(network, batches, config, masks=dead_half, callbacks=[look])
    assert look.start["shed_fc1.weight"] < 0.1
    assert history[-1]["shed_fc1.weight"] >= 0.5
    assert bool((network.fc1.weight[:4].abs() < look.thresholds["fc1.weight"]).all())
    assert history[-1]["shed_fc2.weight"] < 0.5
    numbers = [entry["shed_fc1.weight"] for entry in history]
    assert numbers[0] < 0.2 < numbers[-1]


def test_a_resumed_training_measures_the_same(network, batches, dead_half, killer, stop, tmp_path):
    def run(folder, *others):
        config = WeightConfig(6, lr=0.1, optimizer="sgd", weight_decay=0.03, checkpoint_every=1)
        look, model = WeightShedding(dead_half, tolerance=0.2), copy.deepcopy(network)
        return train_weights(model, batches, config, masks=dead_half, folder=folder, callbacks=[look, *others]), look

    whole, look = run(tmp_path / "whole")
    with pytest.raises(stop):
        run(tmp_path / "parts", killer(14))
    resumed, again = run(tmp_path / "parts")
    assert (resumed, again.start, again.thresholds) == (whole, look.start, look.thresholds)
    assert whole[-1]["shed"] > 0


@pytest.mark.parametrize(
    ("masks", "tolerance", "said"),
    [({"a": torch.ones(2).bool()}, 0.0, "0.0"), ({"a": torch.zeros(2).bool()}, 0.1, "a"), ({}, 0.1, "no layer")],
)
def test_refusals(masks, tolerance, said):
    with pytest.raises(ValueError, match=f"WeightShedding: .*{said}"):
        WeightShedding(masks, tolerance)
