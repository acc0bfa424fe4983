"""Keep probabilities from scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune.nn import masked_layers

SCORES = {"a": torch.tensor([[0.1, 5.0, 0.2]]), "b": torch.tensor([0.3, 0.4])}


def test_logits_are_shifted_by_the_standardised_score():
    found = sp.masks.keep_probabilities(SCORES, 0.9, clamp=1.5)
    values = np.array([0.1, 5.0, 0.2, 0.3, 0.4])
    shift = np.clip((values - np.median(values)) / values.std(), -1.5, 1.5)
    expected = 1 / (1 + np.exp(-(math.log(9) + shift)))
    assert torch.cat([found["a"].flatten(), found["b"]]).numpy() == pytest.approx(expected, rel=1e-6)
    assert found["a"].shape == (1, 3) and shift.max() == 1.5


def test_scope_layer_standardises_each_tensor():
    found = sp.masks.keep_probabilities(SCORES, 0.9, scope="layer")
    for name, scores in SCORES.items():
        assert torch.equal(found[name], sp.masks.keep_probabilities({name: scores}, 0.9)[name])
    assert found["b"][1] - found["b"][0] > 0.05  # over all weights, 5.0 makes them nearly equal
    assert torch.diff(sp.masks.keep_probabilities(SCORES, 0.9)["b"]).item() < 0.01


def test_equal_scores_give_one_probability():
    assert sp.masks.keep_probabilities({"a": torch.ones(4)})["a"].tolist() == pytest.approx([0.95] * 4)


def test_rows_share_the_probability_of_their_mean():
    scores = {"a": torch.tensor([[1.0, 3.0], [4.0, 4.0], [0.0, 2.0]])}
    found = sp.masks.keep_probabilities(scores, pattern="rows")["a"]
    means = sp.masks.keep_probabilities({"a": scores["a"].mean(1)})["a"]
    assert torch.equal(found, means[:, None].expand(3, 2))


@pytest.mark.parametrize("pattern", [None, "rows"])
def test_convert_starts_from_them(dense_layer, pattern):
    start = sp.masks.keep_probabilities(sp.scores.magnitude(dense_layer), pattern=pattern)
    layer = masked_layers(sp.convert(dense_layer, start, pattern=pattern))["0.weight"]
    assert torch.allclose(layer.of_weight(torch.sigmoid(layer.mask_logits.detach().double())), start["0.weight"])


@pytest.fixture
def dense_layer() -> nn.Module:
    model = nn.Sequential(nn.utils.skip_init(nn.Linear, 4, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(12.0).view(3, 4) / 5 - 1)
    return model


@pytest.mark.parametrize("bad", [torch.full((3, 4), 1.0), torch.full((3, 4), math.nan), torch.full((4, 3), 0.5)])
def test_convert_refuses_what_is_no_probability(dense_layer, bad):
    with pytest.raises(ValueError, match=r"0\.weight"):
        sp.convert(dense_layer, {"0.weight": bad})
