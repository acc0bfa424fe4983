"""Gradual magnitude pruning of whole rows, columns and blocks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune.masks.select import EmptyLayerError
from stochprune.training import GradualMagnitudeConfig, prune
from tests.training.by_hand import WEIGHTS, by_name, close, masked_steps

ROWS = {"epochs": 4, "lr": 0.02, "ramp": 0.6, "every": 4, "pattern": "rows", "checkpoint_every": 3}


def kept_rows(masks):
    """How many rows of each mask are kept; no row is kept in part."""
    assert all(mask.flatten(1).any(1).equal(mask.flatten(1).all(1)) for mask in masks.values())
    return {name: int(mask.flatten(1).any(1).sum()) for name, mask in masks.items()}


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_rows_by_hand(dense, loader, scope):
    """After steps 4, 8 and 10 = T the rows of the smallest L1 norm per weight that are left become 0.

    The rows of the second layer are made smaller than those of the first, but not all of them.
    """
    with torch.no_grad():
        dense[2].weight.mul_(torch.tensor([[0.2], [1.5], [1.5]]))
    sparsity = 0.5
    params = by_name(dense)
    masks = {name: torch.ones_like(params[name], dtype=torch.bool) for name in WEIGHTS}
    for step in masked_steps(dense, loader, params, masks):
        if step in (4, 8, 10):
            share = sparsity * (1 - (1 - step / 10) ** 3)
            rows = [
                (float((params[name].detach() * masks[name]).abs().sum(1)[row]) / params[name].shape[1], name, row)
                for name in WEIGHTS
                for row in range(len(params[name]))
            ]
            parts = [rows] if scope == "global" else [[row for row in rows if row[1] == name] for name in WEIGHTS]
            for part in parts:
                for _, name, row in sorted(part)[: round(share * len(part))]:
                    masks[name][row] = False
    assert kept_rows(masks) == ({WEIGHTS[0]: 5, WEIGHTS[1]: 2} if scope == "global" else {WEIGHTS[0]: 5, WEIGHTS[1]: 1})
    found = prune(dense, loader, GradualMagnitudeConfig(**ROWS, sparsity=sparsity, scope=scope))
    assert all(torch.equal(found.masks[name], masks[name]) for name in WEIGHTS)
    close(found.model, params, masks)


@pytest.mark.parametrize("pattern, shape", [("columns", (10, 1)), ("2x3", (2, 3))])
def test_other_groups_are_kept_or_pruned_whole(dense, loader, pattern, shape):
    config = GradualMagnitudeConfig(**{**ROWS, "pattern": pattern}, sparsity=0.5, exclude="2.*")
    found = prune(dense, loader, config)
    (mask,) = found.masks.values()
    blocks = mask.unflatten(0, (-1, shape[0])).unflatten(2, (-1, shape[1]))
    assert blocks.any(3).any(1).equal(blocks.all(3).all(1))
    assert mask.float().mean() == pytest.approx(0.5, abs=0.05)
    assert not bool(found.model[0].weight[~mask].any()) and bool(found.model[2].weight.all())


@pytest.mark.parametrize("stopped_at", [2, 7, 13])
def test_rows_resume_bit_for_bit(dense, loader, killer, stop, tmp_path, stopped_at):
    config = GradualMagnitudeConfig(**ROWS, sparsity=0.6, exclude="2.*")
    part, again = copy.deepcopy(dense), copy.deepcopy(dense)
    whole = prune(dense, loader, config)
    with pytest.raises(stop):
        prune(part, loader, config, folder=tmp_path, callbacks=[killer(stopped_at)])
    resumed = prune(again, loader, config, folder=tmp_path)
    assert torch.equal(whole.masks["0.weight"], resumed.masks["0.weight"]) and whole.history == resumed.history
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_filters_with_batch_norm_become_a_smaller_network(problem, loader):
    """The statistics are those of the filters that are left, and shrink removes the others."""
    model = nn.Sequential(
        nn.Unflatten(1, (1, 6)),
        torch.nn.utils.skip_init(nn.Conv1d, 1, 10, 3, bias=False),
        nn.BatchNorm1d(10),
        nn.ReLU(),
        nn.Flatten(),
        torch.nn.utils.skip_init(nn.Linear, 40, 3),
    )
    for i, layer in enumerate((model[1], model[5])):
        for parameter in layer.parameters():
            parameter.detach().copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    found = prune(model, loader, GradualMagnitudeConfig(**ROWS, sparsity=0.6, exclude="5.*"))
    assert kept_rows(found.masks) == {"1.weight": 4}
    pruned = ~found.masks["1.weight"].flatten(1).any(1)
    loader.set_epoch(0)
    with torch.no_grad():
        means = torch.stack([model[1](model[0](x)).mean((0, 2)) for x, _ in loader]).mean(0)
    torch.testing.assert_close(model[2].running_mean, means)
    assert not bool(model[2].running_mean[pruned].any()) and not bool(model[2].running_var[pruned].any())
    x = problem[0]
    smaller = sp.shrink(model.eval(), x[:2])
    assert smaller[1].out_channels == 4
    torch.testing.assert_close(smaller(x), model(x))


def test_a_layer_is_never_emptied(dense, loader, recorder):
    """In step 8 eleven of the thirteen rows would go, all ten of the first layer; each layer can be cut instead."""
    with torch.no_grad():
        dense[0].weight.mul_(0.01)
    watch = recorder()
    with pytest.raises(EmptyLayerError, match=r"0\.weight.*scope='layer'"):
        prune(copy.deepcopy(dense), loader, GradualMagnitudeConfig(**ROWS, sparsity=0.85), callbacks=[watch])
    assert len(watch.seen) == 7
    found = prune(dense, loader, GradualMagnitudeConfig(**ROWS, sparsity=0.6, scope="layer"))
    assert kept_rows(found.masks) == {"0.weight": 4, "2.weight": 1}


@pytest.mark.parametrize("pattern", ["4x4", "1:4"])
def test_a_pattern_that_does_not_fit_is_refused_before_the_training(dense, loader, recorder, pattern):
    watch = recorder()
    config = GradualMagnitudeConfig(epochs=1, sparsity=0.75, pattern=pattern)
    with pytest.raises(ValueError, match=r"0\.weight"):
        prune(dense, loader, config, callbacks=[watch])
    assert not watch.seen
