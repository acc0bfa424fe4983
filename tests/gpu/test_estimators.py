"""The kernels of other estimators agree on a GPU with the reference: patterns, normals, Gaussian weights, moments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stochprune import kernels, patterns, reference, rng
from stochprune.address import Mask
from tests.backends.cases import moved

SHAPES = [(1, 8), (33, 264), (512, 1024)]
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1e-2}  # relative, of the whole tensor
AT = Mask(torch.tensor([-77]), torch.tensor([5, 2**32 - 1]), 7)
FIRST = [(0, 0), (3, 128), (2**32 - 600, 2**34 - 1096)]  # row and column


def random(device: torch.device, dtype: torch.dtype, *shape: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=g).to(dtype).to(device) for _ in range(5)]


def close(ours: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert (ours.double() - exact).norm() <= TOLERANCE[dtype] * exact.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "n, m, first", [(1, 2, (0, 0)), (1, 4, (0, 0)), (4, 8, (0, 0)), *((2, 4, first) for first in FIRST)], ids=str
)
def test_patterns(
    n: int, m: int, shape: tuple[int, int], dtype: torch.dtype, first: tuple[int, int], device: torch.device
) -> None:
    w, logits, grad, other, _ = random(device, dtype, *shape)
    mask = moved(AT._replace(row=first[0], col=first[1]), device)
    masked = kernels.nm_masked_weight(w, 3 * logits, (n, m), mask=mask, dtype=dtype)
    exact = reference.nm_masked_weight(w, 3 * logits, (n, m), mask=mask, dtype=dtype)
    assert (patterns.groups(masked, m).ne(0).sum(-1) <= n).all()
    # The thresholds are formed in float32: about one group in a million may fall on the other side of one.
    assert (masked != exact).sum() <= 2 * m * (masked.numel() > 100_000)
    grads = torch.stack([grad, other])
    ours = kernels.nm_weight_grad(grads, w, 3 * logits, (n, m), mask=mask, needs=(False, True))
    theirs = reference.nm_weight_grad(
        grads.double(), w.double(), 3 * logits.double(), (n, m), mask=mask, needs=(False, True)
    )
    assert ours[1] is not None and theirs[1] is not None
    close(ours[1], theirs[1], dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("first", [*FIRST, (5, 71)], ids=str)
def test_normals(shape: tuple[int, int], first: tuple[int, int], device: torch.device) -> None:
    ours = kernels.normal(*shape, mask=moved(AT._replace(row=first[0], col=first[1]), device))
    for got, draw in zip(ours.cpu().double(), AT.draw, strict=True):
        exact = rng.normal(*shape, seed=AT.seed, draw=draw, stream=7, row_offset=first[0], col_offset=first[1])
        assert ((got - exact) / exact).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gaussian_weights(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    mu, rho, first, second, _ = random(device, dtype, *shape)
    mask = moved(AT, device)
    exact = reference.gaussian_weight(mu.double(), rho.double() - 5, mask=mask, dtype=torch.float64)
    close(kernels.gaussian_weight(mu, rho - 5, mask=mask, dtype=dtype), exact, dtype)
    grad = torch.stack([first, second])
    exact = reference.gaussian_grad(grad.double(), rho.double(), mask=mask)
    close(kernels.gaussian_grad(grad, rho, mask=mask), exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masked, noisy", [(True, False), (False, True), (True, True)])
def test_moments(masked: bool, noisy: bool, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    w, logits, rho, dmean, dvariance = random(device, dtype, *shape)
    given = (w, logits if masked else None, rho if noisy else None)
    wide = [None if t is None else t.double() for t in given]
    for ours, exact in zip(kernels.moments(*given, dtype), reference.moments(*wide, torch.float64), strict=True):
        close(ours, exact, dtype)
    exacts = reference.moments_grad(dmean.double(), dvariance.double(), *wide)
    for ours, exact in zip(kernels.moments_grad(dmean, dvariance, *given), exacts, strict=True):
        assert (ours is None) == (exact is None)
        if ours is not None:
            close(ours, exact, dtype)
