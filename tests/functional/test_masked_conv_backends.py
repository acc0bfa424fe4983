"""A masked convolution end to end on each backend: the operators ask of it what it has."""

from __future__ import annotations

import pytest
import torch

from stochprune import backends, functional, reference
from tests.cuda.emulation import emulation


@pytest.mark.parametrize("name", ["native", "triton", "cuda"])
def test_values_and_gradients_are_those_of_the_reference(name, monkeypatch, generator):
    if name == "cuda" and not torch.cuda.is_available():
        monkeypatch.setattr("stochprune._C.cuda", emulation(), raising=False)
    served = backends.load(name)
    device = "cuda" if name != "native" and torch.cuda.is_available() else "cpu"
    shapes = ((2, 3, 7, 7), (4, 3, 3, 3), (4, 3, 3, 3))
    tensors = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]

    def run(backend):
        monkeypatch.setattr(backends, "resolve", lambda *tensors: backend)
        y = functional.masked_conv2d(*tensors, seed=1, draw=2, stream=3, samples=2)
        return [y, *torch.autograd.grad(y.square().sum(), tensors)]

    for got, expected in zip(run(served), run(reference), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
