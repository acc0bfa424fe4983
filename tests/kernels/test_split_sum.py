"""Sharing a reduction among programs, and adding the shares."""

from __future__ import annotations

import pytest
import torch

from stochprune.kernels.split_sum import MINIMUM_STEPS, split, split_sum


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 17, 1000])
@pytest.mark.parametrize("programs", [1, 2, 100000])
def test_shares_cover_the_steps(steps: int, programs: int, device: torch.device) -> None:
    share, shares = split(steps, programs, device)
    assert share >= MINIMUM_STEPS
    assert shares >= 1 and share * shares >= steps > share * (shares - 1) - (shares == 1)
    if programs == 100000:
        assert shares == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_sum(dtype: torch.dtype, bias: bool, device: torch.device, generator: torch.Generator) -> None:
    partial = torch.randn(5, 2, 7, 131, generator=generator).to(device)
    offset = torch.randn(131, generator=generator).to(device) if bias else None
    out = torch.empty(2, 7, 131, dtype=dtype, device=device)
    split_sum(partial, offset, out)
    expected = partial.double().sum(0) + (offset.double() if bias else 0)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-2)
