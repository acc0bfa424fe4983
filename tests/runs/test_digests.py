"""Digests name files and folders that exist: they may never change."""

from __future__ import annotations

import pytest
import torch

import stochprune as sp
from stochprune.runs import fingerprint, json_digest, tensor_digest
from stochprune.runs.digests import structure


def test_digests_are_those_of_files_that_exist():
    tensors = torch.arange(6).view(2, 3), torch.zeros(0), torch.tensor(1.5)
    assert tensor_digest(*tensors).startswith("5800115f470c7796")
    assert tensor_digest(torch.ones(3, dtype=torch.bfloat16)).startswith("a1d210810e2d24dc")
    assert json_digest({"b": 1.5, "a": [1, None]}).startswith("47cea7f09691b789")


def test_a_tensors_digest_is_of_its_values_and_not_of_their_layout():
    x = torch.arange(6.0).view(2, 3)
    assert tensor_digest(x.T.contiguous().T) == tensor_digest(x) == tensor_digest(x.clone().requires_grad_())
    others = (x + 1, x.double(), x.view(3, 2), x.int(), x.view(-1))
    assert len({tensor_digest(each) for each in (x, *others)}) == 6


def test_json_without_an_order_of_keys():
    assert json_digest({"a": 1, "b": (2,)}) == json_digest({"b": [2], "a": 1}) != json_digest({"a": 1, "b": [3]})
    with pytest.raises(ValueError, match="float"):
        json_digest({"a": float("nan")})


def test_fingerprint_sees_names_values_and_dtypes():
    def model(scale=1.0, dtype=torch.float32):
        layer = torch.nn.utils.skip_init(torch.nn.Linear, 2, 2)
        torch.nn.init.constant_(layer.weight, scale), torch.nn.init.zeros_(layer.bias)
        return layer.to(dtype)

    others = (model(2.0), model(dtype=torch.float64), model(dtype=torch.bfloat16), torch.nn.Sequential(model()))
    assert len({fingerprint(each) for each in (model(), *others)}) == 5
    assert fingerprint(model()) == fingerprint(model())


def test_structure_sees_types_and_settings_but_no_values():
    def network(*modules):
        return torch.nn.Sequential(torch.nn.utils.skip_init(torch.nn.Linear, 2, 2), *modules)

    others = [(), (torch.nn.ReLU(),), (torch.nn.Tanh(),), (torch.nn.LeakyReLU(0.1),), (torch.nn.LeakyReLU(0.2),)]
    assert len({structure(network(*modules)) for modules in others}) == 5
    low, high = (sp.nn.MaskedLinear(2, 2, keep=keep) for keep in (0.1, 0.9))
    assert structure(low) == structure(high) != structure(sp.nn.MaskedLinear(2, 2, estimator="expected"))
