"""SparseGPT against least squares."""

from __future__ import annotations

import pytest
import torch

from stochprune import masks, models, scores
from tests.scores.conftest import correlated, normal


def least_error(x, target, allowed):
    """The least squares fit of ``target`` [examples] by the columns of x that are allowed, with its ridge in x."""
    fit = torch.zeros(x.shape[1], dtype=x.dtype)
    if allowed.any():
        fit[allowed] = torch.linalg.lstsq(x[:, allowed], target.unsqueeze(1)).solution.squeeze(1)
    return fit


def with_ridge(x, damping):
    """x with rows that add damping * mean(diag H) to the diagonal of H = x^T x."""
    return torch.cat([x, (damping * x.square().sum(dim=0).mean()).sqrt() * torch.eye(x.shape[1], dtype=x.dtype)])


def test_sparsegpt_scores_are_the_least_errors(layer):
    x, weight = correlated(20, 6), layer.weight.detach()
    result = scores.sparsegpt(layer, None, [(x, None)], damping=0.1)["weight"]
    ridge = with_ridge(x, 0.1)
    for row, j in ((0, 0), (1, 2), (3, 5)):
        later = torch.arange(6) > j
        residual = ridge[:, j] * weight[row, j]  # what is lost, made up for by the columns after j
        fit = least_error(ridge, residual, later)
        error = (residual - ridge @ fit).square().sum() / len(x)
        assert result[row, j].item() == pytest.approx(error.item(), rel=1e-8)


@pytest.mark.parametrize("sparsity", [0.5, (2, 3)])
@pytest.mark.parametrize("block", [6, 3])
def test_each_removal_is_made_up_for_by_least_squares_on_the_columns_after_it(layer, sparsity, block):
    x, original = correlated(20, 6), layer.weight.detach().clone()
    mask = scores.sparsegpt_prune(layer, [(x, None)], sparsity, damping=0.1, block=block)["weight"]
    ridge = with_ridge(x, 0.1)
    assert torch.equal(layer.weight != 0, mask)
    for row in range(4):
        weight = original[row].clone()
        for j in (~mask[row]).nonzero().flatten().tolist():
            weight += least_error(ridge, ridge[:, j] * weight[j], torch.arange(6) > j)
            weight[j] = 0
        assert torch.allclose(layer.weight[row], weight, rtol=1e-7, atol=1e-10)
    kept = mask.view(4, -1, 3 if sparsity == (2, 3) else block).sum(dim=-1)
    assert bool((kept == 1).all()) if sparsity == (2, 3) else int(mask.sum()) == 12


def few_directions():
    """Inputs [200, 32] in which others can stand in for a removed one."""
    return normal(200, 4) @ normal(4, 32, seed=1) + 0.1 * normal(200, 32, seed=2)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (6, 8)])
def test_groups_of_n_of_m_are_chosen_after_compensation(n, m):
    x = few_directions()
    errors = {}
    for block in (None, 32):
        layer = models.mlp((32, 16), seed=2).double().fc1
        before = layer(x).detach()
        scores.sparsegpt_prune(layer, [(x, None)], (n, m), block=block)
        errors[block] = (layer(x).detach() - before).square().mean().item()
    assert errors[None] < 0.7 * errors[32]  # 32: all groups of a row are chosen before any compensation


def test_sparsegpt_beats_magnitude_on_what_it_minimises():
    x = few_directions()
    errors = {}
    for name in ("magnitude", "sparsegpt"):
        layer = models.mlp((32, 16), seed=2).double().fc1
        before = layer(x).detach()
        if name == "magnitude":
            masks.apply(layer, masks.from_scores(scores.magnitude(layer), 0.5))
        else:
            scores.sparsegpt_prune(layer, [(x, None)], 0.5)
        errors[name] = (layer(x) - before).square().mean().item()
    assert errors["sparsegpt"] < 0.1 * errors["magnitude"]


def test_later_layers_see_the_pruned_ones_before_them():
    model = models.mlp((6, 5, 4), seed=0).double()
    x = correlated(20, 6)
    result = scores.sparsegpt_prune(model, iter([(x, None)]), 0.5)
    assert masks.sparsity(result) == pytest.approx(0.5)
    second = models.mlp((6, 5, 4), seed=0).double().fc2
    hidden = torch.relu(model.fc1(x)).detach()
    alone = scores.sparsegpt_prune(second, [(hidden, None)], 0.5)["weight"]
    assert torch.equal(alone, result["fc2.weight"])
    assert torch.allclose(second.weight, model.fc2.weight, rtol=1e-10)


def test_an_input_that_is_always_zero_has_no_weight_left(layer):
    x = correlated(20, 6)
    x[:, 3] = 0
    assert not bool(scores.sparsegpt(layer, None, [(x, None)])["weight"][:, 3].any())
    scores.sparsegpt_prune(layer, [(x, None)], 0.5)
    assert not bool(layer.weight[:, 3].any())


def test_bad_input_is_named(layer):
    with pytest.raises(ValueError, match="batches"):
        scores.sparsegpt(layer, None, [])
    with pytest.raises(ValueError, match=r"damping.*got 0"):
        scores.sparsegpt(layer, None, [(correlated(5, 6), None)], damping=0)
    before = layer.weight.detach().clone()
    for sparsity, block, said in (((2, 4), 6, r"block .*sparsity"), ((2, 4), None, r"4 .* 6 inputs of weight")):
        with pytest.raises(ValueError, match=rf"sparsegpt_prune: .*{said}"):
            scores.sparsegpt_prune(layer, [(correlated(5, 6), None)], sparsity, block=block)
    assert torch.equal(layer.weight, before)
