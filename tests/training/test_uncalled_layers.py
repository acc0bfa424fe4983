"""A model that reads a layer's weight instead of calling the layer is refused at the first step."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stochprune.nn import masked_layers
from stochprune.training import FinetuneConfig, finetune
from tests.backends.cases import ESTIMATORS


class Around(nn.Module):
    """Uses the first layer of a masked model in a way of its own, and calls the others."""

    def __init__(self, model: nn.Sequential, use: str) -> None:
        super().__init__()
        self.first, *rest = model
        self.rest, self.use, self.calls = nn.Sequential(*rest), use, 0

    def forward(self, x):
        self.calls += 1
        if self.use == "read" or (self.use == "read after one call" and self.calls > 1):
            return self.rest(F.linear(x, self.first.weight, self.first.bias))
        if self.use == "skip at first" and self.calls == 1:
            return self.rest(x.repeat(1, 2)[:, : self.first.out_features])
        return self.rest(self.first(x))


@pytest.mark.parametrize("budget", ["shift", "penalty", "kl", "none"])
def test_a_layer_whose_weight_is_read_is_refused_by_name(masked, loader, budget):
    model = Around(masked(), "read")
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(ValueError, match=r"first\.weight.*exclude=\['first\.weight'\]"):
        finetune(model, loader, FinetuneConfig(epochs=1, budget=budget))
    assert model.calls == 1
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_with_frozen_weights_a_layer_that_is_not_called_is_named_in_a_warning(masked, loader):
    with pytest.warns(UserWarning, match=r"first\.weight.*exclude=\['first\.weight'\]"):
        finetune(Around(masked(), "read"), loader, FinetuneConfig(epochs=1, mode="frozen"))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_called_layers_are_trained(masked, loader, estimator):
    model = Around(masked(), "call")
    assert len(finetune(model, loader, FinetuneConfig(epochs=1, estimator=estimator)).history) == 1


def test_a_mask_that_is_not_trained_need_not_be_applied(masked, loader):
    model = Around(masked(), "read")
    model.first.mask_logits.requires_grad_(False)
    finetune(model, loader, FinetuneConfig(epochs=1))


@pytest.mark.parametrize("use", ["skip at first", "read after one call"])
def test_only_the_first_step_is_checked_and_a_skipped_layer_passes(masked, loader, use):
    model = Around(masked(), use)
    finetune(model, loader, FinetuneConfig(epochs=1))
    assert model.calls == len(loader) and len(masked_layers(model)) > 1


def test_layers_that_share_their_logits_count_as_one(masked, loader):
    model = Around(masked(), "call")
    model.twin = copy.deepcopy(model.first)
    model.twin.weight, model.twin.mask_logits = model.first.weight, model.first.mask_logits
    finetune(model, loader, FinetuneConfig(epochs=1))
    assert model.twin.mask_draw.item() == 0 < model.first.mask_draw.item()
