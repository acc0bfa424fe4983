"""one_pass in Triton: every gradient of one draw against the reference, on whole tiles and on parts of tiles."""

from __future__ import annotations

import pytest
import torch

from stochprune import reference
from stochprune.address import KLTerm, Mask
from stochprune.kernels.one_pass import NARROW, one_pass
from tests.backends.cases import ESTIMATORS
from tests.kernels.cases import case

HALF, FLOAT = torch.float16, torch.float32
SHAPES = [(NARROW.tokens - 3, 192, 128), (NARROW.tokens + 8, 64, 64), (20, 70, 100)]  # tokens, columns, rows


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masters", [HALF, FLOAT], ids=str)
@pytest.mark.parametrize("with_kl", [False, True])
def test_gradients(
    estimator: str, shape: tuple[int, int, int], masters: torch.dtype, with_kl: bool, device: torch.device
) -> None:
    t = case((1, *shape), (HALF, masters, masters), device)
    mask = Mask(t["seed"], t["draw"], 7, estimator, 0.7)
    prior = t["weight"] / 2
    kl = KLTerm(prior, torch.tensor(0.37, dtype=torch.float64, device=device)) if with_kl else None
    to = {"dweight": torch.empty_like(t["weight"]), "dlogits": torch.empty_like(t["logits"])}
    dx = one_pass(t["grad"][0], t["x"][0], t["weight"], t["logits"], mask=mask, kl=kl, **to)
    exact = reference.masked_linear_backward(
        *(t[name].double() for name in ("grad", "x", "weight", "logits")),
        mask=mask,
        needs=(True, True, True),
        kl=kl and kl._replace(prior_logits=prior.double()),
    )
    for ours, right in zip((dx[None], *to.values()), exact, strict=True):
        scale = float(right.abs().max())
        torch.testing.assert_close(ours.double().cpu(), right.cpu(), rtol=0, atol=3e-3 * max(1.0, scale))


@pytest.mark.parametrize("name", ["weight", "logits"])
def test_transposed(name: str, device: torch.device) -> None:
    """A matrix that is not contiguous gives the bits of one that is."""
    t = case((1, 20, 128, 64), (HALF, HALF, HALF), device)
    results = []
    for laid in (t[name], t[name].mT.contiguous().mT):
        t[name] = laid
        to = {"dweight": torch.empty(64, 128, dtype=HALF), "dlogits": torch.empty(64, 128, dtype=HALF)}
        to = {key: value.to(device) for key, value in to.items()}
        mask = Mask(t["seed"], t["draw"], 7)
        dx = one_pass(t["grad"][0], t["x"][0], t["weight"], t["logits"], mask=mask, **to)
        results.append((dx, *to.values()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
