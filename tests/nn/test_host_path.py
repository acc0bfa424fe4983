"""A layer calls few Python functions of this package in a step: on small layers they take most of the time."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import stochprune as sp

PACKAGE = str(Path(sp.__file__).parent)
MOST = 34


@pytest.mark.parametrize(
    "layer, shape, most",
    [(sp.nn.MaskedLinear(64, 64), (32, 64), MOST), (sp.nn.MaskedConv2d(8, 8, 3, padding=1), (4, 8, 8, 8), 61)],
    ids=["linear", "convolution"],
)
def test_python_calls_of_a_step(layer, shape, most):
    if sp.backends.resolve(layer.weight).NAME != "native":
        pytest.skip("counts the calls of the native backend")
    x = torch.ones(shape, requires_grad=True)
    layer(x).sum().backward()
    called: list[str] = []

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            called.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        layer(x).sum().backward()
    finally:
        sys.setprofile(before)
    assert 10 < len(called) < most, called
