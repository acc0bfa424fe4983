"""mask_backward in Triton: the masked weight that it writes beside the gradients."""

from __future__ import annotations

import pytest
import torch

from stochprune import materialised
from stochprune.address import KLTerm, Mask
from stochprune.kernels.mask_backward import mask_backward
from stochprune.kernels.prepass import mask_weight
from tests.backends.cases import ESTIMATORS
from tests.kernels.cases import case

DTYPES = (torch.bfloat16, torch.float32, torch.float32)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("shape, col", [((1, 6, 130, 33), 0), ((1, 6, 64, 70), 71)])
def test_one_pass_over_the_weights_gives_the_bits_of_two(
    estimator: str, needs: tuple[bool, bool], shape: tuple[int, int, int, int], col: int, device: torch.device
) -> None:
    t = case(shape, DTYPES, device)
    given = [t[name] for name in ("grad", "x", "weight", "logits")]
    mask = Mask(t["seed"], t["draw"], 7, estimator, 0.7, row=3, col=col)
    kl = KLTerm(t["weight"] / 2, torch.tensor(0.37, dtype=torch.float64, device=device))
    dx, *ours = materialised.product_grads(mask_backward, *given, mask=mask, needs=(True, *needs), kl=kl)
    none, *apart = materialised.product_grads(mask_backward, *given, mask=mask, needs=(False, *needs), kl=kl)
    assert none is None
    for together, alone, need in zip(ours, apart, needs, strict=True):
        assert (together is not None) == need and (not need or torch.equal(together, alone))
    masked = mask_weight(t["weight"], t["logits"], mask=mask, dtype=DTYPES[0])[0]
    assert torch.equal(dx[0], t["grad"][0] @ masked)
