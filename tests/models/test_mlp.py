"""Fully connected networks: structure, determinism, and the global generator."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stochprune.models import lenet_300_100, mlp


def test_names_shapes_and_zero_biases() -> None:
    model = mlp((6, 5, 4, 3), seed=0)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        "fc1.weight": (5, 6),
        "fc1.bias": (5,),
        "fc2.weight": (4, 5),
        "fc2.bias": (4,),
        "fc3.weight": (3, 4),
        "fc3.bias": (3,),
    }
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("bias"))
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())


def test_forward_is_relu_between_layers_and_none_after_the_last() -> None:
    model = mlp((6, 5, 3), seed=0)
    x = torch.linspace(-2, 2, 24).view(4, 1, 2, 3)
    w1, w2 = model.fc1.weight, model.fc2.weight
    expected = (x.view(4, 6) @ w1.T).clamp(min=0) @ w2.T
    assert torch.allclose(model(x), expected)
    assert bool((expected < 0).any())


def test_weights_are_a_function_of_the_seed() -> None:
    first, again, other = (mlp((6, 5, 5, 5), seed=seed) for seed in (1, 1, 2))
    for name, weight in first.named_parameters():
        assert torch.equal(weight, again.get_parameter(name))
        assert name.endswith("bias") or not torch.equal(weight, other.get_parameter(name))
    assert not torch.equal(first.fc2.weight, first.fc3.weight)  # each layer has a stream of its own


def test_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    lenet_300_100(seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_lenet_300_100_has_the_number_of_weights_of_the_literature() -> None:
    model = lenet_300_100(seed=0)
    assert sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear)) == 266_200
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("sizes", [(), (3,), (3, 0), (3, -1, 2)])
def test_sizes_that_make_no_network_are_named(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"sizes.*got "):
        mlp(sizes, seed=0)
