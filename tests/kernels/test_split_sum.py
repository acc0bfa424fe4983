"""Sharing a reduction among programs, and adding the shares."""

from __future__ import annotations

import pytest
import torch

from stochprune.kernels import split_sum as module
from stochprune.kernels.split_sum import MINIMUM_STEPS, most_shares, split, split_sum


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 17, 1000])
@pytest.mark.parametrize("programs", [1, 2, 100000])
def test_shares_cover_the_steps(steps: int, programs: int, device: torch.device) -> None:
    share, shares = split(steps, programs, 3, device)
    assert share >= MINIMUM_STEPS
    assert shares >= 1 and share * shares >= steps > share * (shares - 1) - (shares == 1)
    if programs == 100000:
        assert shares == 1


@pytest.mark.parametrize(
    "tokens, resident, read, shares",
    [(16, 3, 4, 6), (16, 3, 8, 6), (64, 3, 4, 6), (128, 1, 4, 2), (128, 1, 8, 2), (512, 1, 8, 1)],
)
def test_one_wave_with_few_partial_sums(
    tokens: int, resident: int, read: int, shares: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product of 4096 x 4096 weights on 132 multiprocessors, in tiles of 64 rows."""
    monkeypatch.setattr(module, "multiprocessors", lambda device: 132)
    weights, results = 4096 * 4096 * read, tokens * 4096
    given = split(64, 64, resident, torch.device("cpu"), most_shares(weights, results))
    assert given[1] == shares and 64 * shares <= 132 * resident
    assert shares == 1 or 4 * shares * results <= 0.1 * weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_sum(dtype: torch.dtype, bias: bool, device: torch.device, generator: torch.Generator) -> None:
    partial = torch.randn(5, 2, 7, 131, generator=generator).to(device)
    offset = torch.randn(131, generator=generator).to(device) if bias else None
    out = torch.empty(2, 7, 131, dtype=dtype, device=device)
    split_sum(partial, offset, out)
    expected = partial.double().sum(0) + (offset.double() if bias else 0)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-2)
