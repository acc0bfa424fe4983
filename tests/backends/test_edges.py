"""The contract of every backend at the limits of numbers: infinite logits, NaN under a mask, dtypes it cannot write."""

from __future__ import annotations

import itertools

import pytest
import torch

from stochprune import backends, reference, rng
from tests.backends.cases import BOTH, ESTIMATORS, TOLERANCE, error, mask, moved

INF = float("inf")
SEED, DRAW, STREAM = 278, 5, 7  # of an 8 x 64 block that holds the uniforms 0 and 32767
AT = mask(SEED, DRAW, STREAM)
U = rng.uniform16(8, 64, seed=SEED, draw=DRAW, stream=STREAM) & 0x7FFF


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_infinite_logits_have_the_clamped_thresholds(backend, device, dtype):
    """T is 32767 at +inf, which prunes at u = 32767, and 1 at -inf, which keeps at u = 0."""
    assert (U == 0).any() and (U == 32767).any()
    if dtype not in TAKEN[backend.NAME]:
        pytest.skip("served by the reference")
    one = torch.ones(8, 64, dtype=dtype, device=device)
    for logit in (INF, 3.4e38, -INF, -3.4e38):
        logits = torch.full((8, 64), logit).to(dtype).to(device)  # 3.4e38 is infinite in bfloat16
        kept = backend.masked_weight(one, logits, mask=moved(AT, device), dtype=dtype)[0].cpu() != 0
        assert torch.equal(kept, (U < 32767) if logit > 0 else (U < 1))
        dweight, _ = backend.weight_grad(one[None].clone(), one, logits, mask=moved(AT, device), needs=BOTH)
        assert torch.equal(dweight.cpu() != 0, kept)
        levels = backend.threshold_from_logits(logits).cpu().int()
        assert (levels == (32767 if logit > 0 else 1)).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_at_infinite_logits_are_finite(backend, device, estimator, generator):
    w, grad, prior = torch.randn(3, 8, 64, generator=generator)
    logits = torch.randn(8, 64, generator=generator)
    logits[::2] = INF * logits[::2].sign()
    at = AT._replace(estimator=estimator, temperature=0.7)
    expected = reference.weight_grad(grad[None].double(), w.double(), logits.double(), mask=at, needs=BOTH)
    inputs = [t.to(device) for t in (grad[None].clone(), w, logits)]
    for got, want in zip(backend.weight_grad(*inputs, mask=moved(at, device), needs=BOTH), expected, strict=True):
        assert got.isfinite().all() and error(got, want) < TOLERANCE[torch.float32]
    scale = torch.tensor(0.37, dtype=torch.float64)
    pull, _ = reference.bernoulli_kl_backward(scale, logits.double(), prior.double(), needs=(True, False))
    got, _ = backend.bernoulli_kl_backward(scale.to(device), logits.to(device), prior.to(device), needs=(True, False))
    assert got.isfinite().all() and error(got, pull) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("estimator", [e for e in ESTIMATORS if e != "hard_concrete"])  # its slope can be exactly 0
def test_an_infinite_weight_has_an_infinite_gradient_under_a_large_logit(backend, device, estimator, generator):
    """A slope of 1e-34 is not 0, so its product with an infinite weight is infinite and not NaN.

    Beyond 80 nothing is compared. The C++ kernels take the slope of 80 there, and the gradient stays infinite; to set
    it to 0 would cost instructions for each weight. With the other backends the slope becomes 0, and the gradient NaN.
    """
    grad = torch.randn(8, 64, generator=generator)
    w = torch.where(U % 2 == 0, INF, -INF)
    at = moved(AT._replace(estimator=estimator, temperature=0.7), device)
    for logit in (20.0, -20.0, 45.0, -45.0):
        given = [t.to(device) for t in (grad[None].clone(), w, torch.full((8, 64), logit))]
        _, got = backend.weight_grad(*given, mask=at, needs=(False, True))
        assert torch.equal(got.cpu(), grad * w)


@pytest.mark.parametrize("estimator", ["straight_through", "straight_through_concrete"])
def test_a_pruned_weight_counts_as_0_whatever_its_value(backend, device, estimator):
    keep = U < 16384
    w = torch.where(keep, 2.0, torch.tensor(float("nan"))).to(device)
    logits = torch.zeros(8, 64, device=device)
    at = moved(AT._replace(estimator=estimator), device)
    masked = backend.masked_weight(w, logits, mask=at, dtype=torch.float32)[0].cpu()
    assert torch.equal(masked, torch.where(keep, 2.0, 0.0))
    x = torch.ones(1, 1, 64, device=device)
    y = backend.masked_linear(x, w, logits, None, mask=at)
    assert torch.equal(y.cpu().flatten(), 2.0 * keep.sum(1))
    dweight, _ = backend.weight_grad(w[None].clone(), w, logits, mask=at, needs=(True, False))
    assert torch.equal(dweight.cpu(), torch.where(keep, 2.0, 0.0))
    logits[:, 1::4] = -INF
    pruned = backend.nm_masked_weight(torch.ones_like(w), logits, (2, 4), mask=at, dtype=torch.float32)[0].cpu() == 0
    w = torch.where(pruned, float("nan"), torch.tensor(3.0)).to(device)
    masked = backend.nm_masked_weight(w, logits, (2, 4), mask=at, dtype=torch.float32)[0].cpu()
    assert torch.equal(masked, torch.where(pruned, 0.0, 3.0))


def test_a_nan_deviation_gives_nan(backend, device):
    """rho = NaN at one weight: its values and gradients are NaN, the others are not."""
    mu, rho = torch.zeros(8, 64, device=device), torch.zeros(8, 64, device=device)
    rho[3, 6] = float("nan")
    only = torch.zeros(8, 64, dtype=torch.bool)
    only[3, 6] = True
    grad = torch.ones(1, 8, 64, device=device)
    results = [backend.gaussian_weight(mu, rho, mask=moved(AT, device), dtype=torch.float32)[0]]
    results += [backend.gaussian_grad(grad, rho, mask=moved(AT, device))]
    results += [backend.moments(mu, None, rho, torch.float32)[1]]
    results += [backend.moments_grad(grad[0], grad[0], mu, None, rho)[2]]
    for result in results:
        assert torch.equal(result.cpu().isnan(), only)


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TAKEN = {"reference": DTYPES, "native": (torch.float32, torch.bfloat16), "triton": DTYPES[:3], "cuda": DTYPES[:3]}
CLOSE = {**TOLERANCE, torch.float16: 2e-3}


@pytest.mark.parametrize("out, weight, logits", list(itertools.product(DTYPES, repeat=3)), ids=str)
def test_every_mixture_of_dtypes_is_right_or_not_taken(backend, device, out, weight, logits, generator):
    w, grad = torch.randn(2, 8, 64, generator=generator)
    w, grad, t = w.to(weight), grad[None].to(out), torch.randn(8, 64, generator=generator).to(logits)
    given = [x.to(device) for x in (w, t, grad)]
    if not {out, weight, logits} <= set(TAKEN[backend.NAME]):
        assert not backend.supports(*given)  # which `resolve` goes by
        return
    assert backend.supports(*given) or device == "cpu"  # the CUDA backend is emulated there
    levels = backend.threshold_from_logits(given[1]).cpu().int()
    t[levels != rng.threshold_from_logits(t).int()] = 0  # a GPU's may differ by 1
    given[1] = t.to(device)
    at = moved(AT, device)
    masked = backend.masked_weight(*given[:2], mask=at, dtype=out)[0]
    assert masked.dtype == out
    exact = reference.masked_weight(w.double(), t.double(), mask=AT, dtype=torch.float64)[0]
    assert error(masked, exact) < CLOSE[out]
    expected = reference.weight_grad(grad.double(), w.double(), t.double(), mask=AT, needs=BOTH)
    grads = backend.weight_grad(given[2].clone(), *given[:2], mask=at, needs=BOTH)
    for got, want, like in zip(grads, expected, (w, t), strict=True):
        assert got.dtype == like.dtype
        assert error(got, want) < max(CLOSE[like.dtype], CLOSE[weight])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.float8_e4m3fn])
def test_the_native_kernels_refuse_dtypes_that_they_do_not_know(dtype):
    native = pytest.importorskip("stochprune.native")
    from stochprune import _C

    one = torch.ones(2, 64)
    with pytest.raises((TypeError, ValueError), match=r"dtype|float"):
        native.masked_weight(one, one, mask=AT, dtype=dtype)
    with pytest.raises((TypeError, ValueError), match=r"dtype|float"):
        native.masked_weight(one, one.to(dtype), mask=AT, dtype=torch.float32)
    if dtype != torch.float8_e4m3fn:  # such a weight is converted
        with pytest.raises((TypeError, ValueError), match=r"dtype|float"):
            native.masked_weight(one.to(dtype), one, mask=AT, dtype=torch.float32)
    out = torch.zeros(1, 2, 64, dtype=dtype)
    with pytest.raises(TypeError, match=str(dtype)):
        _C.normal(AT, (2, 64), out, 1)
    assert (out.float() == 0).all()


@pytest.mark.parametrize("weight, logits, out", list(itertools.product(DTYPES, repeat=3)), ids=str)
def test_resolve_gives_a_backend_that_writes_the_dtype(weight, logits, out, generator):
    w, t = torch.randn(8, 64, generator=generator).to(weight), torch.randn(8, 64, generator=generator).to(logits)
    served = backends.resolve(w, t, w.new_empty(0, dtype=out))
    got = served.masked_weight(w, t, mask=AT, dtype=out)[0]
    assert got.dtype == out
    torch.testing.assert_close(got.double(), torch.where(rng.threshold_from_logits(t).int() > U, w, 0).to(out).double())
