"""The same call gives the same bits two hundred times on a GPU: a race of a matrix instruction would change some."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stochprune.address import Mask
from stochprune.kernels import masked_linear, masked_linear_backward
from stochprune.kernels.routes import OVERRIDE, ROUTES

REPEATS = 200
SHAPES = [  # D, M, K, N
    (1, 16, 2048, 1024),
    (1, 64, 2048, 1024),
    (1, 128, 2048, 1024),
    (1, 300, 1024, 1024),
    (4, 33, 1024, 512),
    (1, 100, 1001, 517),  # not aligned
]
DTYPES = [  # of x, of weight and logits
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float32),
]


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("estimator", ["straight_through", "hard_concrete"])
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_repeats_its_bits(
    route: str,
    estimator: str,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, torch.dtype],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(OVERRIDE, route)
    (D, M, K, N), (dtype, masters) = shape, dtypes
    g = torch.Generator().manual_seed(1)
    x, grad = (torch.randn(s, generator=g).to(dtype).to(device) for s in ((D, M, K), (D, M, N)))
    weight, logits = (torch.randn(N, K, generator=g).to(masters).to(device) for _ in range(2))
    mask = Mask(torch.tensor([-77], device=device), torch.arange(D, device=device), 7, estimator, 0.7)

    def run() -> list[Tensor | None]:
        y = masked_linear(x, weight, logits, None, mask=mask)
        return [y, *masked_linear_backward(grad, x, weight, logits, mask=mask, needs=(True, True, True))]

    first = run()
    differing = sum(
        (one != other).any()
        for _ in range(REPEATS - 1)
        for one, other in zip(first, run(), strict=True)
        if one is not None and other is not None
    )
    assert int(differing) == 0
