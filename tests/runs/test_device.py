"""Devices by name."""

from __future__ import annotations

import re

import pytest
import torch

from stochprune.runs.device import device_name, device_of


def test_the_cpu_and_the_default():
    assert device_of("cpu") == device_of(torch.device("cpu")) == torch.device("cpu")
    assert device_of("").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_name(torch.device("cpu")) == "cpu"


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x", "cpu:99", "cuda:-1", "cpu:x", "x" * 1000, "mps", "\x00"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=rf"device.*got {re.escape(repr(name))}"):
        device_of(name)


@pytest.mark.parametrize("name", [0, 3, None, [], b"cpu"])
def test_values_that_are_not_names_are_refused(name):
    with pytest.raises(TypeError, match=rf"device_of: name.*got {re.escape(repr(name))}"):
        device_of(name)


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"cuda:99.*\d+ GPU"):
        device_of("cuda:99")
