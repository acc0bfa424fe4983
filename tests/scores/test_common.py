"""The weights that are scored, and their names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

import stochprune as sp
from stochprune import models, scores


def linear(inputs: int, outputs: int, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """A layer of normal weights; torch's constructor would draw from the global generator."""
    layer = skip_init(kind, inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    return layer


class Tied(nn.Module):
    """A layer that is used twice, one that shares its weight, and an embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = skip_init(nn.Embedding, 7, 4)
        self.shared = linear(4, 4)
        self.again = self.shared
        self.twin = linear(4, 4)
        self.twin.weight = self.shared.weight
        self.head = linear(4, 7)
        self.embedding.weight = self.head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.twin(self.again(self.shared(self.embedding(tokens)))))


def test_linear_and_convolutional_weights_are_found_by_qualified_name() -> None:
    model = nn.Sequential(
        skip_init(nn.Conv2d, 1, 2, 3),
        nn.BatchNorm2d(2),
        nn.Sequential(skip_init(nn.ConvTranspose1d, 2, 3, 2), linear(3, 4)),
    )
    found = scores.prunable_weights(model)
    assert list(found) == ["0.weight", "2.0.weight", "2.1.weight"]
    assert all(found[name] is model.get_parameter(name) for name in found)


def test_a_bare_layer_has_the_name_weight() -> None:
    assert list(scores.prunable_weights(linear(2, 3))) == ["weight"]


def test_tied_and_shared_weights_are_found_once() -> None:
    assert list(scores.prunable_weights(Tied(), include="*")) == ["shared.weight", "head.weight"]


def test_gradient_of_a_tied_weight_is_that_of_all_its_uses_and_the_ties_stay() -> None:
    model, tokens = Tied(), torch.tensor([[1, 2, 3]])
    shared, head = model.shared.weight, model.head.weight
    result = scores.snip(model, lambda y, _: y.square().sum(), [(tokens, tokens)], include="*")
    assert model.shared is model.again and model.shared.weight is shared is model.twin.weight
    assert model.head.weight is head is model.embedding.weight
    model(tokens).square().sum().backward()
    assert torch.allclose(result["shared.weight"], (shared * shared.grad).abs(), rtol=1e-4)
    assert torch.allclose(result["head.weight"], (head * head.grad).abs(), rtol=1e-4)


def test_masked_layers_keep_their_names() -> None:
    model = models.mlp((4, 5, 3), seed=0)
    dense = scores.magnitude(model)
    masked = scores.magnitude(sp.convert(model))
    assert list(masked) == list(dense) and all(torch.equal(masked[name], dense[name]) for name in dense)


def test_subclasses_and_parametrized_layers_are_left_out() -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).exp()

    normed = torch.nn.utils.parametrizations.weight_norm(linear(2, 2))
    assert list(scores.prunable_weights(nn.Sequential(linear(2, 2, Odd), normed, linear(2, 2)))) == ["2.weight"]


def test_a_model_without_weights_to_prune_is_named() -> None:
    with pytest.raises(ValueError, match=r"BatchNorm1d .*layer"):
        scores.magnitude(nn.BatchNorm1d(3))


def test_by_name_lists_the_known_scores() -> None:
    assert scores.by_name("snip") is scores.snip
    with pytest.raises(ValueError, match=r"score 'snap'.*magnitude, random, snip"):
        scores.by_name("snap")
