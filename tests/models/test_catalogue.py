"""Networks by name: fit, determinism, and what an initialisation must hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stochprune.models import build, lenet_300_100
from stochprune.models.catalogue import BUILDERS

SHAPES = {"gpt": (12,)}


@pytest.fixture(scope="module", params=[*BUILDERS])
def network(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, build(request.param, SHAPES.get(request.param, (1, 32, 32)), 7, 3)


def test_build_fits_the_network_to_the_data() -> None:
    model = build("lenet_300_100", (1, 8, 8), 7, 3)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    assert torch.equal(model.fc1.weight, lenet_300_100(64, 7, seed=3).fc1.weight)


def test_forward_gives_one_logit_for_each_class(network: tuple[str, nn.Module]) -> None:
    name, model = network
    model.eval()
    if name == "gpt":
        assert model(torch.zeros(2, 12, dtype=torch.int64)).shape == (2, 12, 7)
    else:
        assert model(torch.linspace(-1, 1, 2048).view(2, 1, 32, 32)).shape == (2, 7)


def test_every_number_is_set(network: tuple[str, nn.Module]) -> None:
    _, model = network
    for name, tensor in model.state_dict().items():
        assert not tensor.is_meta and tensor.isfinite().all(), name
        if tensor.dim() < 2 and name.endswith(("weight", "running_var")):
            assert (tensor == 1).all(), name
        elif tensor.dim() < 2:
            assert (tensor == 0).all(), name
        else:  # the seed is fixed
            assert abs(tensor.mean()) < 5 * tensor.std() / tensor.numel() ** 0.5, name


def test_weights_are_a_function_of_the_seed(network: tuple[str, nn.Module]) -> None:
    name, model = network
    again, other = (build(name, SHAPES.get(name, (1, 32, 32)), 7, seed) for seed in (3, 4))
    for key, weight in model.named_parameters():
        assert torch.equal(weight, again.get_parameter(key))
        assert weight.dim() < 2 or not torch.equal(weight, other.get_parameter(key))


def test_build_lists_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"model 'lenet'.*lenet_300_100, .*pbb_cnn, .*vit, gpt"):
        build("lenet", (1, 8, 8), 10, 0)


def test_inputs_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"resnet20 .*\b3\b.*got shape \(64,\)"):
        build("resnet20", (64,), 10, 0)
