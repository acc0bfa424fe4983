"""mask_backward in CUDA C++: the gradient of x with the masked weight that is written beside the gradients."""

from __future__ import annotations

import pytest
import torch

from stochprune import backends
from stochprune.address import KLTerm
from tests.backends.cases import ESTIMATORS, mask
from tests.cuda.emulation import emulation


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("cols, col", [(33, 0), (70, 71)])
def test_one_pass_over_the_weights_gives_the_bits_of_two(
    estimator: str, needs: tuple[bool, bool], cols: int, col: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stochprune._C.cuda", emulation(), raising=False)
    cuda, at = backends.load("cuda"), mask(5, [2], 3)._replace(estimator=estimator, temperature=0.7, row=3, col=col)
    generator = torch.Generator().manual_seed(0)
    grad, x = (torch.randn(1, 6, n, generator=generator).bfloat16() for n in (9, cols))
    weight, logits = (torch.randn(9, cols, generator=generator) for _ in range(2))
    kl = KLTerm(weight / 2, torch.tensor(0.37, dtype=torch.float64))
    dx, *ours = cuda.masked_linear_backward(grad, x, weight, logits, mask=at, needs=(True, *needs), kl=kl)
    none, *apart = cuda.masked_linear_backward(grad, x, weight, logits, mask=at, needs=(False, *needs), kl=kl)
    assert none is None
    for together, alone, need in zip(ours, apart, needs, strict=True):
        assert (together is not None) == need and (not need or torch.equal(together, alone))
    alone, *_ = cuda.masked_linear_backward(grad, x, weight, logits, mask=at, needs=(True, False, False))
    assert torch.equal(dx, alone)
