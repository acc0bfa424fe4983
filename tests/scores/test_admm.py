"""ADMM pruning against least squares, and the layers that layer-wise scores choose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stochprune import models, scores
from tests.scores.conftest import correlated

PRUNERS = {"sparsegpt": scores.sparsegpt_prune, "admm": scores.admm_prune}


def layer_and_inputs():
    model = models.mlp((12, 8), seed=0).double()
    return model, correlated(60, 12).double()


def error(x, weight, original):
    return (x @ (weight - original).T).square().sum().item()


def test_many_iterations_reach_the_least_squares_fit_of_the_mask():
    model, x = layer_and_inputs()
    original = model.fc1.weight.detach().clone()
    mask = scores.admm_prune(model, [(x, None)], 0.5, damping=1e-9, iterations=3000)["fc1.weight"]
    assert int(mask.sum()) == 48 and torch.equal(model.fc1.weight != 0, mask)
    for row in range(8):
        fit = torch.linalg.lstsq(x[:, mask[row]], x @ original[row]).solution
        assert torch.allclose(model.fc1.weight[row, mask[row]], fit, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sparsity", [0.5, (2, 4)])
def test_twenty_iterations_beat_the_mask_alone(sparsity):
    model, x = layer_and_inputs()
    original = model.fc1.weight.detach().clone()
    mask = scores.admm_prune(model, [(x, None)], sparsity)["fc1.weight"]
    assert error(x, model.fc1.weight, original) < 0.8 * error(x, original * mask, original)
    if sparsity == (2, 4):
        assert bool((mask.view(8, 3, 4).sum(-1) == 2).all())


def test_inputs_that_are_always_0_are_pruned_first():
    model, x = layer_and_inputs()
    x[:, :6] = 0
    mask = scores.admm_prune(model, [(x, None)], 0.5)["fc1.weight"]
    assert not bool(mask[:, :6].any()) and bool(model.fc1.weight.isfinite().all())


@pytest.mark.parametrize(
    ("options", "words"), [({"damping": 0.0}, "damping.*0.0"), ({"growing": 21}, "growing.*20.*21")]
)
def test_bad_options_are_named(options, words):
    model, x = layer_and_inputs()
    with pytest.raises(ValueError, match=words):
        scores.admm_prune(model, [(x, None)], 0.5, **options)


class Tied(nn.Module):
    """An embedding, a hidden layer, and an output layer with the weight of the embedding."""

    def __init__(self):
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
        with torch.no_grad():
            for shift, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.arange(parameter.numel()).add(shift).sin().view(parameter.shape))
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(self.table(x))))


TOKENS = [(torch.arange(5).view(1, 5), None)]


@pytest.fixture
def tied():
    with torch.random.fork_rng():
        return Tied()


@pytest.mark.parametrize(
    "found",
    [
        lambda model, **names: scores.wanda(model, None, TOKENS, **names),
        lambda model, **names: scores.sparsegpt(model, None, TOKENS, **names),
        lambda model, **names: scores.sparsegpt_prune(model, TOKENS, 0.5, **names),
        lambda model, **names: scores.admm_prune(model, TOKENS, 0.5, **names),
    ],
)
def test_a_tied_output_layer_stays_dense_unless_it_is_named(tied, found):
    before = tied.head.weight.detach().clone()
    assert list(found(tied)) == ["hidden.weight"] and tied.head.weight.equal(before)
    assert list(found(tied, include="head.*")) == ["head.weight"]
    assert list(found(tied, include="*", exclude="hidden.*")) == ["head.weight"]
    with pytest.raises(ValueError, match=r"exclude 'hidden\.\*' choose none of hidden\.weight, head\.weight"):
        found(tied, exclude="hidden.*")


@pytest.mark.parametrize("prune", PRUNERS.values(), ids=PRUNERS)
def test_conv1d_of_transformers_is_pruned_like_its_transpose(prune):
    conv = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model, x = layer_and_inputs()
    with torch.random.fork_rng():
        turned = nn.Sequential(conv(8, 12)).double()
    with torch.no_grad():
        turned[0].weight.copy_(model.fc1.weight.T)
    wanted, mask = prune(model, [(x, None)], (2, 4)), prune(turned, [(x, None)], (2, 4))
    assert torch.equal(mask["0.weight"].T, wanted["fc1.weight"])
    assert torch.allclose(turned[0].weight.T, model.fc1.weight)
    assert torch.equal(
        scores.wanda(turned, None, [(x, None)])["0.weight"].T, scores.wanda(model, None, [(x, None)])["fc1.weight"]
    )
