"""gaussian_kl and spike_and_slab_kl: against torch.distributions and quadrature, gradients against autograd."""

from __future__ import annotations

import mpmath
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from stochprune import rng
from stochprune.functional import bernoulli_kl, gaussian_kl, spike_and_slab_kl

OPS = torch.ops.stochprune
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3}


def inputs(generator, shape=(37, 65), dtype=torch.float32):
    """mu, sigma, prior_mu, prior_sigma, logits, prior_logits."""
    normal = [torch.randn(shape, generator=generator) for _ in range(6)]
    normal[1], normal[3] = (0.05 + t.exp() for t in (normal[1], normal[3]))
    return [t.to(dtype).requires_grad_() for t in normal]


def wide(tensors):
    return [t.detach().double().requires_grad_() for t in tensors]


def by_torch(mu, sigma, mu0, sigma0):
    return kl_divergence(Normal(mu, sigma), Normal(mu0, sigma0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gaussian_equals_torch_in_float64(dtype, generator):
    tensors = inputs(generator, dtype=dtype)[:4]
    got = gaussian_kl(*tensors)
    assert got.dtype == torch.float64 and got.shape == ()
    assert got.item() == pytest.approx(by_torch(*wide(tensors)).sum().item(), rel=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_gaussian_gradients(dtype, generator):
    tensors = inputs(generator, dtype=dtype)[:4]
    (3 * gaussian_kl(*tensors)).backward()
    exact = wide(tensors)
    (3 * by_torch(*exact).sum()).backward()
    for got, expected in zip(tensors, exact, strict=True):
        assert got.grad.dtype == dtype
        assert (got.grad.double() - expected.grad).norm() <= TOLERANCE[dtype] * expected.grad.norm()


@pytest.mark.parametrize("ratio", [1e-8, 1e-3, 1 - 1e-6, 1.0, 1 + 1e-6, 1e3, 1e8])
@pytest.mark.parametrize("shift", [0.0, 1e-9, 1.0, 1e6])
def test_gaussian_extremes(ratio, shift):
    numbers = (shift, 0.3 * ratio, 0.0, 0.3)
    tensors = [torch.full((3,), x, dtype=torch.float64) for x in numbers]
    with mpmath.workdps(50):
        r, z = mpmath.mpf(numbers[1]) / mpmath.mpf(0.3), mpmath.mpf(shift) / mpmath.mpf(0.3)
        expected = float(3 * ((r * r - 1 + z * z) / 2 - mpmath.log(r)))
    assert gaussian_kl(*tensors).item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_spike_and_slab_value_and_gradients(dtype, generator):
    mu, sigma, mu0, sigma0, logits, prior = tensors = inputs(generator, dtype=dtype)
    kl = spike_and_slab_kl(logits, mu, sigma, prior, mu0, sigma0)
    (3 * kl).backward()
    m, s, m0, s0, x, l0 = wide(tensors)
    p = torch.sigmoid(l0)
    sampled = rng.threshold_from_logits(logits).double() / rng.LEVELS

    def formula(q):
        return 3 * (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log() + q * by_torch(m, s, m0, s0)).sum()

    assert 3 * kl.item() == pytest.approx(formula(sampled).item(), rel=1e-12)
    gradients = torch.autograd.grad(formula(sampled), (m, s, m0, s0, l0))
    smooth = torch.autograd.grad(formula(torch.sigmoid(x)), x)
    for got, expected in zip((mu, sigma, mu0, sigma0, prior, logits), (*gradients, *smooth), strict=True):
        assert got.grad.dtype == dtype
        assert (got.grad.double() - expected).norm() <= 2 * TOLERANCE[dtype] * expected.norm()


def test_spike_and_slab_equals_the_integral_over_one_weight():
    q, m, s, p, m0, s0 = 0.25, 0.4, 0.3, 0.625, -0.2, 0.8

    def density(x):
        a, b = q * norm.pdf(x, m, s), p * norm.pdf(x, m0, s0)
        return (
            a * (norm.logpdf(x, m, s) - norm.logpdf(x, m0, s0) + torch.tensor(q / p).double().log().item()) if b else 0
        )

    continuous = quad(density, m - 12 * s, m + 12 * s, epsabs=1e-13)[0]
    spike = (1 - q) * torch.tensor((1 - q) / (1 - p)).double().log().item()
    one = lambda x: torch.tensor([x], dtype=torch.float64)  # noqa: E731
    logit = lambda x: torch.logit(one(x))  # noqa: E731
    got = spike_and_slab_kl(logit(q), one(m), one(s), logit(p), one(m0), one(s0))
    assert got.item() == pytest.approx(continuous + spike, rel=1e-7)


def test_without_a_slab_the_masks_remain(generator):
    mu, sigma, _, _, logits, prior = inputs(generator)
    same = spike_and_slab_kl(logits, mu, sigma, prior, mu, sigma)
    assert same.item() == pytest.approx(bernoulli_kl(logits, prior).item(), rel=1e-13)


def test_numbers_as_prior(generator):
    mu, sigma, *_ = inputs(generator, dtype=torch.float64)
    expected = by_torch(mu, sigma, torch.zeros(()).double(), torch.tensor(0.1, dtype=torch.float64))
    assert gaussian_kl(mu, sigma, 0.0, 0.1).item() == pytest.approx(expected.sum().item(), rel=1e-12)


@pytest.mark.parametrize("shape", [(), (0,), (5, 3, 3, 3)], ids=str)
def test_any_shape(shape, generator):
    mu, sigma, mu0, sigma0, logits, prior = inputs(generator, shape)
    kl = spike_and_slab_kl(logits, mu, sigma, prior, mu0, sigma0)
    kl.backward()
    assert mu.grad.shape == logits.grad.shape == shape and kl.shape == ()
    assert (kl == 0) == (mu.numel() == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spike", [False, True])
def test_operators_pass_opcheck(dtype, spike, generator):
    mu, sigma, mu0, sigma0, logits, _ = inputs(generator, (5, 70), dtype)
    torch.library.opcheck(OPS.gaussian_kl.default, (mu, sigma, mu0, sigma0, logits if spike else None))
    detached = [t.detach() for t in (mu, sigma, mu0, sigma0, logits)]
    needs = [True, False, True, False, True]
    torch.library.opcheck(OPS.gaussian_kl_backward.default, (torch.ones((), dtype=torch.float64), *detached, needs))


def test_double_backward_raises(generator):
    mu, sigma, mu0, sigma0, *_ = inputs(generator)
    (g,) = torch.autograd.grad(gaussian_kl(mu, sigma, mu0, sigma0), mu, create_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        g.sum().backward()


ONES = torch.ones(3, 4)
GOOD = {"mu": ONES, "sigma": ONES, "prior_mu": ONES, "prior_sigma": ONES}


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"mu": ONES.long()}, TypeError, "gaussian_kl: mu.*int64"),
        ({"sigma": ONES.T}, ValueError, r"sigma \(4, 3\).*\(3, 4\)"),
        ({"sigma": -ONES}, ValueError, r"sigma.*got -1.0"),
        ({"sigma": -ONES, "prior_sigma": -ONES}, ValueError, r"sigma.*got -1.0"),
        ({"prior_sigma": 0.0}, ValueError, r"prior_sigma.*got 0.0"),
        ({"sigma": ONES * float("inf")}, ValueError, "sigma.*got inf"),
        ({"mu": ONES * float("nan")}, ValueError, "mu .*NaN"),
        ({"prior_mu": float("nan")}, ValueError, "prior_mu .*NaN"),
        ({"prior_mu": torch.ones(3, 4, device="meta")}, ValueError, "prior_mu.*meta"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        gaussian_kl(**{**GOOD, **change})


def test_bad_logits():
    with pytest.raises(ValueError, match=r"logits \(3,\).*mu \(3, 4\)"):
        spike_and_slab_kl(torch.ones(3), ONES, ONES, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"spike_and_slab_kl: sigma .*\(4, 3\)"):
        spike_and_slab_kl(ONES, ONES, ONES.T, 0.0, 0.0, 1.0)
