"""weight_grad_matmul in Triton: wide and narrow tiles, of one draw and of several, against the reference."""

from __future__ import annotations

import pytest
import torch

from stochprune import reference
from stochprune.address import Mask
from stochprune.kernels.weight_grad_matmul import weight_grad_matmul
from tests.kernels.cases import case

HALF, FLOAT = torch.float16, torch.float32


@pytest.mark.parametrize("shape", [(1, 70, 192, 128), (2, 70, 128, 64), (1, 9, 77, 70)], ids=str)
@pytest.mark.parametrize("masters", [HALF, FLOAT], ids=str)
@pytest.mark.parametrize("estimator", ["straight_through", "concrete"])
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_gradients(
    shape: tuple[int, int, int, int],
    masters: torch.dtype,
    estimator: str,
    needs: tuple[bool, bool],
    device: torch.device,
) -> None:
    t = case(shape, (HALF, masters, masters), device)
    given = [t[name] for name in ("grad", "x", "weight", "logits")]
    mask = Mask(t["seed"], t["draw"], 7, estimator, 0.7)
    dweight, dlogits = (torch.empty_like(t["weight"]) if need else None for need in needs)
    weight_grad_matmul(*given, mask=mask, dweight=dweight, dlogits=dlogits)
    exact = reference.masked_linear_backward(*(g.double() for g in given), mask=mask, needs=(False, *needs))
    for ours, right in zip((dweight, dlogits), exact[1:], strict=True):
        assert (ours is None) == (right is None)
        if ours is not None:
            atol = 3e-3 * max(1.0, float(right.abs().max()))
            torch.testing.assert_close(ours.double().cpu(), right.cpu(), rtol=0, atol=atol)
