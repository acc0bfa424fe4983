"""The device functions of the estimators on single numbers, against float64."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from stochprune.kernels.estimators import sigmoid_slope

NORMAL = 2.0**-126  # the smallest normal number of float32


@triton.jit
def slope_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, sigmoid_slope(tl.load(x_ptr + at, mask=at < count, other=0.0)), mask=at < count)


def slopes(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    slope_kernel[(triton.cdiv(len(x), 1024),)](x, out, len(x), BLOCK=1024)
    return out.double().cpu()


def test_slope(device: torch.device) -> None:
    x = torch.cat([torch.linspace(-95, 95, 19001), torch.tensor([0.0, 1e-40, -1e-40, 88.0, -88.0])])
    exact = torch.sigmoid(x.double()) * torch.sigmoid(-x.double())
    ours, normal = slopes(x.to(device)), exact >= NORMAL
    # A GPU rounds x log2(e), which is up to 126, before it takes the power of 2.
    tolerance = 1e-6 if device.type == "cpu" else 1e-5
    torch.testing.assert_close(ours[normal], exact[normal], rtol=tolerance, atol=0)
    assert bool(((ours[~normal] >= 0) & (ours[~normal] <= 2 * NORMAL)).all())


@pytest.mark.parametrize("x, expected", [("inf", 0.0), ("-inf", 0.0), ("nan", float("nan"))])
def test_slope_of_special_values(x: str, expected: float, device: torch.device) -> None:
    torch.testing.assert_close(slopes(torch.tensor([float(x)], device=device)).item(), expected, equal_nan=True)
