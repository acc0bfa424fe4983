"""Activation pruning: which units go and when, the targeted dropout, resumption, and what is left."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune.training import ActivationPruningConfig, LoopOptions, Validation, activation_pruning

CONFIG = ActivationPruningConfig(epochs=4, lr=0.02, sparsity=0.6, dropout=0.5, ramp=0.5, checkpoint_every=3, seed=2)


def test_whole_units_go_by_the_cubic(dense, loader):
    model = nn.Sequential(dense[0], nn.ReLU(), *copy.deepcopy(dense[2:]))
    found = activation_pruning(model, loader, CONFIG, include="0.*")
    assert found.model is model and type(model[0]) is nn.Linear
    rows = found.masks["0.weight"]
    assert rows.any(1).equal(rows.all(1)) and int(rows.any(1).sum()) == 4
    assert torch.equal(model[0].weight == 0, ~rows) and bool(model[2].weight.all())
    assert [entry["sparsity"] for entry in found.history] == pytest.approx([0.5, 0.6, 0.6, 0.6])


def test_the_first_epoch_by_hand(dense, loader, recorder):
    """Without dropout in the first epoch: activations of each step, then one cut and the first probabilities."""
    by_hand = copy.deepcopy(dense)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.02)
    total, count = torch.zeros(10, dtype=torch.float64), 0
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(0)
    for x, y in loader:
        hidden = by_hand[0](x)
        total, count = total + hidden.detach().relu().double().square().sum(0), count + len(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand[2:](hidden.relu()), y).backward()
        optimizer.step()
    a = (total / count).sqrt()
    kept = a >= a.sort(descending=True).values[4]
    watch = recorder(lambda: dense[0].mask_logits.detach().flatten().clone())
    activation_pruning(dense, loader, CONFIG, include="0.*", callbacks=[watch], options=LoopOptions(torch.optim.SGD))
    assert bool((watch.seen[0] == 40).all())
    after = watch.seen[len(loader)]
    torch.testing.assert_close(
        torch.sigmoid(after.double())[kept], (1 - 0.5 * (1 - a / a.max()))[kept], rtol=1e-5, atol=1e-6
    )
    assert bool((after[~kept] == -40).all()) and int(kept.sum()) == 5


def test_a_unit_that_is_never_active_goes_first_and_no_layer_becomes_empty(dense, loader):
    dense[0].weight.detach()[3], dense[0].bias.detach()[3] = 0, -1
    one = ActivationPruningConfig(epochs=1, lr=1e-6, sparsity=0.1, ramp=1.0)
    found = activation_pruning(copy.deepcopy(dense), loader, one, include="0.*")
    assert (~found.masks["0.weight"][:, 0]).nonzero().item() == 3
    most = ActivationPruningConfig(epochs=2, lr=1e-6, sparsity=0.99, ramp=1.0)
    found = activation_pruning(dense, loader, most, include="*")
    assert [int(mask.any(1).sum()) for mask in found.masks.values()] == [1, 1]


@pytest.mark.parametrize("stopped_at", [2, 7, 13])
def test_resumed_is_bit_for_bit_the_uninterrupted(resumes, loader, stopped_at):
    resumes(lambda model, **options: activation_pruning(model, loader, CONFIG, include="0.*", **options), stopped_at)


def test_a_validation_changes_nothing(dense, loader, problem):
    """Other units are active on its inputs, which have the other sign."""
    x, y = problem
    plain, watched = (
        activation_pruning(copy.deepcopy(dense), loader, CONFIG, include="0.*", callbacks=watch)
        for watch in ([], [Validation([(-9 * x, y)])])
    )
    assert torch.equal(plain.masks["0.weight"], watched.masks["0.weight"])
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True))


def test_a_failure_leaves_the_model_s_own_layers(dense, loader, recorder, stop):
    layers = [*dense]
    with pytest.raises(stop):
        activation_pruning(dense, loader, CONFIG, include="0.*", callbacks=[recorder(stop=6)])
    assert [*dense] == layers and not dense[0]._forward_hooks


def test_filters_of_convolutions(problem):
    x, y = problem
    layers = (nn.utils.skip_init(nn.Conv1d, 1, 8, 3), nn.utils.skip_init(nn.Linear, 32, 3))
    model = nn.Sequential(nn.Unflatten(1, (1, 6)), layers[0], nn.ReLU(), nn.Flatten(), layers[1])
    for i, parameter in enumerate(model.parameters()):
        parameter.detach().copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    batches = sp.data.Batches(x, y, batch_size=16, seed=3)
    found = activation_pruning(model, batches, CONFIG, include=nn.Conv1d)
    assert [int(mask.flatten(1).all(1).sum()) for mask in found.masks.values()] == [3]
    small = sp.shrink(found.model, x[:2])
    assert small[1].weight.shape[0] == 3
    torch.testing.assert_close(small(x), found.model(x))


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [({"include": "7.*"}, ValueError, "include '7"), ({"include": "0.*", "exclude": "*"}, ValueError, "convert")],
)
def test_refusals(dense, loader, options, error, named):
    with pytest.raises(error, match=named):
        activation_pruning(dense, loader, CONFIG, **options)
