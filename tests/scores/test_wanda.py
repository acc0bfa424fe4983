"""Wanda against its definition and the errors that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune import models, scores
from tests.scores.conftest import correlated, normal


def test_wanda_is_the_weight_times_the_norm_of_its_input(layer):
    x = correlated(10, 6)
    result = scores.wanda(layer, None, [(x[:3], None), (x[3:], None)])["weight"]
    assert torch.allclose(result, layer.weight.detach().abs() * x.square().mean(dim=0).sqrt(), rtol=1e-12)
    # its claim: the squared error on the outputs of removing this weight alone
    error = (x[:, 2] * layer.weight.detach()[1, 2]).square().mean().sqrt()
    assert result[1, 2].item() == pytest.approx(error.item())


def test_every_use_of_a_weight_and_every_token_counts():
    first = models.mlp((5, 5), seed=0).double().fc1
    model = nn.Sequential(first, nn.Tanh(), first)
    x = normal(3, 7, 5)  # examples, tokens, features
    result = scores.wanda(model, None, [(x, None)])
    assert list(result) == ["0.weight"]
    inputs = torch.cat([x, first(x).tanh().detach()]).reshape(-1, 5)
    expected = first.weight.detach().abs() * (inputs.square().sum(dim=0) / 3).sqrt()
    assert torch.allclose(result["0.weight"], expected, rtol=1e-12)


def test_the_model_is_left_alone_and_masked_layers_count():
    model = nn.Sequential(models.mlp((4, 5), seed=0).fc1, nn.BatchNorm1d(5), models.mlp((5, 3), seed=1).fc1).train()
    sp.convert(model, include="2.weight")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(normal(6, 4).float(), None)]
    assert list(scores.wanda(model, None, batches)) == ["0.weight", "2.weight"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_bad_input_is_named(layer):
    with pytest.raises(ValueError, match=r"wanda .*batches"):
        scores.wanda(layer)
    with pytest.raises(ValueError, match=r"Conv1d .*linear"):
        scores.wanda(nn.Conv1d(1, 1, 1, device="meta"), None, [])
    unused = nn.ModuleDict({"a": layer})
    unused.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"input .*a\.weight"):
        scores.wanda(unused, None, [(correlated(5, 6), None)])


class Mixture(nn.Module):
    """Two experts; the sign of the first input chooses the one of an example."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.ModuleList(models.mlp((6, 4), seed=seed).double().fc1 for seed in (0, 1))

    def forward(self, x):
        positive = x[:, 0] > 0
        return sum(
            expert(x[chosen]).sum()
            for expert, chosen in zip(self.e, (positive, ~positive), strict=True)
            if chosen.any()
        )


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_a_batch_may_miss_an_expert_that_another_reaches(name):
    model, x = Mixture(), normal(9, 6)
    x = x[x[:, 0].argsort()]
    parts = [(part, None) for part in (x[:2], x[2:7], x[7:])]
    assert (x[:7, 0] < 0).all() and (x[7:, 0] > 0).all()
    whole, found = (scores.by_name(name)(model, None, batches) for batches in ([(x, None)], parts))
    for weight, score in whole.items():
        assert score.any() and torch.allclose(found[weight], score, rtol=1e-10)
    with pytest.raises(ValueError, match=rf"{name}: batches.*e\.0\.weight.*exclude"):
        scores.by_name(name)(model, None, parts[:1])
    assert list(scores.by_name(name)(model, None, parts[:1], exclude="e.0.*")) == ["e.1.weight"]
