"""The weights that are scored, and their names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.utils.checkpoint import checkpoint

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


class Checkpointed(nn.Module):
    """A network whose first half is computed again in the backward pass."""

    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(linear(4, 6), nn.BatchNorm1d(6), nn.Softplus())
        self.head, self.checkpointed = linear(6, 3), checkpointed

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.body, x, use_reentrant=False) if self.checkpointed else self.body(x)
        return self.head(x)


BATCH = (torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3)


@pytest.mark.parametrize("name", ["snip", "force", "iterative_snip", "synflow", "prospr"])
def test_activation_checkpointing_changes_no_score(name: str) -> None:
    plain, again = Checkpointed(False), Checkpointed(True)
    options = {"steps": 2, "lr": 0.1, "first_order": True} if name == "prospr" else {}
    expected, found = (scores.by_name(name)(model, F.cross_entropy, [BATCH], **options) for model in (plain, again))
    assert any(bool(score.any()) for score in expected.values())
    assert all(torch.equal(found[key], score) for key, score in expected.items())
    assert torch.equal(again.body[1].running_mean, torch.zeros(6))


@pytest.mark.parametrize("name", ["grasp", "prospr"])
def test_second_derivatives_refuse_activation_checkpointing(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"activation_checkpointing_disable"):
        scores.by_name(name)(Checkpointed(True), F.cross_entropy, [BATCH])
    assert scores.by_name(name)(Checkpointed(False), F.cross_entropy, [BATCH])
