"""threshold_from_logits in Triton: within 1 of the reference, since a kernel forms it in float32."""

from __future__ import annotations

import pytest
import torch

from stochprune import rng
from stochprune.kernels import threshold_from_logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_within_one_of_the_reference(dtype: torch.dtype, device: torch.device) -> None:
    logits = torch.cat([torch.linspace(-20, 20, 20011), torch.tensor([0.0, float("inf"), -float("inf")])]).to(dtype)
    ours = threshold_from_logits(logits.to(device)).cpu()
    assert ours.dtype == torch.uint16
    difference = ours.int() - rng.threshold_from_logits(logits).int()
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 1e-2
    assert ours[-3:].tolist() == [16384, 32767, 1]


@pytest.mark.parametrize("shape", [(0,), (), (3, 5, 7)])
def test_keeps_the_shape(shape: tuple[int, ...], device: torch.device) -> None:
    out = threshold_from_logits(torch.zeros(shape, device=device))
    assert out.shape == shape and bool((out.int() == 16384).all())


def test_transposed_logits(device: torch.device) -> None:
    logits = torch.linspace(-8, 8, 77, device=device).reshape(7, 11)
    assert torch.equal(threshold_from_logits(logits.mT).int(), threshold_from_logits(logits).mT.int())


@pytest.mark.gpu
def test_nan_gives_one(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("numpy's maximum, which the interpreter uses, propagates NaN")
    assert threshold_from_logits(torch.tensor([float("nan")], device=device)).item() == 1
