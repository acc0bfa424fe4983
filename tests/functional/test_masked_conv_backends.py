"""A masked convolution end to end on each backend: the operators ask of it what it has."""

from __future__ import annotations

import pytest
import torch

from stochprune import backends, functional, reference
from tests.cuda.emulation import emulation


@pytest.mark.parametrize("options", [{"draw": 2, "samples": 2}, {"draw": 2}, {"draw": torch.arange(2)}], ids=str)
@pytest.mark.parametrize(
    "name, route",
    [("native", None), ("triton", "in_register"), ("triton", "thresholds"), ("triton", "prepass"), ("cuda", None)],
)
def test_values_and_gradients_are_those_of_the_reference(name, route, options, monkeypatch, generator):
    if route is not None:
        monkeypatch.setenv("STOCHPRUNE_ROUTE", route)
    if name == "cuda" and not torch.cuda.is_available():
        monkeypatch.setattr("stochprune._C.cuda", emulation(), raising=False)
    served = backends.load(name)
    device = "cuda" if name != "native" and torch.cuda.is_available() else "cpu"
    shapes = ((2, 3, 7, 7), (4, 3, 3, 3), (4, 3, 3, 3), (4,))
    at = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in options.items()}
    tensors = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]

    def run(backend):
        monkeypatch.setattr(backends, "resolve", lambda *tensors: backend)
        y = functional.masked_conv2d(*tensors, seed=1, stream=3, padding=1, **at)
        return [y, *torch.autograd.grad(y.square().sum(), tensors)]

    for got, expected in zip(run(served), run(reference), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
