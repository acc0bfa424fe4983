"""Every score takes include and exclude, and leaves out a layer that is tied to an embedding unless it is named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stochprune as sp
from stochprune import scores

QUICK = {"synflow": {"rounds": 2}, "force": {"rounds": 2}, "iterative_snip": {"rounds": 2}, "k_starts": {"starts": 2}}


class Network(nn.Module):
    """Two hidden layers and an output layer whose weight an embedding has too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 4)
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.table.weight = self.head.weight

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network()


@pytest.fixture(params=scores.NAMES)
def score(request):
    x = torch.linspace(-1, 1, 48).sin().view(8, 6)
    batches = [(x, torch.arange(8) % 5)]

    def compute(model, **names):
        found = scores.by_name(request.param)(model, F.cross_entropy, batches, **QUICK.get(request.param, {}), **names)
        return list(found)

    return compute


def test_the_choice_of_weights(network, score):
    assert score(network) == ["first.weight", "second.weight"]
    assert score(network, include="head.*") == ["head.weight"]
    assert score(network, include=["first.*", "head.*"], exclude="head.weight") == ["first.weight"]
    assert score(network, exclude="first.*") == ["second.weight"]
    for misspelt in ({"include": "x"}, {"include": ["first.*", "x"]}, {"exclude": "x"}):
        with pytest.raises(ValueError, match=f"{next(iter(misspelt))} 'x' fits no weight"):
            score(network, **misspelt)
    with pytest.raises(ValueError, match=r"include 'table\.\*' .* none of first\.weight"):
        score(network, include="table.*")
    assert score(network, exclude="table.*") == ["first.weight", "second.weight"]  # left out anyway


def test_the_others_do_not_count(network):
    one = scores.synflow(network, input_shape=(6,), rounds=3, include="second.*")["second.weight"]
    both = scores.synflow(network, input_shape=(6,), rounds=3)["second.weight"]
    assert not one.equal(both)  # there the first layer is pruned too, between the rounds
    assert scores.erk_densities(network, 0.5, include="second.*") == {"second.weight": 0.5}


def test_a_masked_tied_layer_has_a_score(network):
    masked = sp.convert(network)
    assert list(scores.random(masked)) == ["first.weight", "second.weight", "table.weight"]
    assert list(scores.magnitude(masked)) == ["first.weight", "second.weight", "table.weight"]
