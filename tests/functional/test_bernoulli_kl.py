"""bernoulli_kl: against scipy and against arithmetic of 60 digits, gradients against autograd, extremes, bad input."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import log_expit, rel_entr

from stochprune import backends, rng
from stochprune.functional import bernoulli_kl

OPS = torch.ops.stochprune
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def pair(generator, shape=(37, 65), scale=4.0, dtype=torch.float32):
    return [(scale * torch.randn(shape, generator=generator)).to(dtype).requires_grad_() for _ in range(2)]


def by_scipy(logits, prior):
    q = rng.threshold_from_logits(logits).numpy() / rng.LEVELS
    l0 = prior.detach().double().numpy()
    return np.sum(rel_entr(q, np.exp(log_expit(l0))) + rel_entr(1 - q, np.exp(log_expit(-l0))))


def by_mpmath(logits, prior):
    with mpmath.workdps(60):
        total = mpmath.mpf(0)
        for t, l0 in zip(rng.threshold_from_logits(logits).flatten().tolist(), prior.flatten().tolist(), strict=True):
            q, e = mpmath.mpf(t) / rng.LEVELS, mpmath.exp(-abs(mpmath.mpf(l0)))
            p = e / (1 + e) if l0 < 0 else 1 / (1 + e)
            total += q * mpmath.log(q / p) + (1 - q) * (
                mpmath.log((1 - q) / e * (1 + e)) if l0 > 0 else mpmath.log((1 - q) / (1 - p))
            )
        return float(total)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.5, 4.0, 20.0])
def test_equals_scipy(dtype, scale, generator):
    logits, prior = pair(generator, scale=scale, dtype=dtype)
    got = bernoulli_kl(logits, prior)
    assert got.dtype == torch.float64 and got.shape == ()
    assert got.item() == pytest.approx(by_scipy(logits, prior), rel=1e-12)


@pytest.mark.parametrize("logit", [-1000.0, -40.0, -11.0, 0.0, 0.7, 11.0, 40.0, 1000.0])
@pytest.mark.parametrize("prior", [-1000.0, -40.0, 0.0, 1e-30, 40.0, 700.0, 1000.0])
def test_extreme_logits(logit, prior):
    logits, priors = torch.full((3,), logit), torch.full((3,), prior)
    expected = by_mpmath(logits, priors)
    assert bernoulli_kl(logits, priors).item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_near_the_prior(generator):
    """Terms of 1e-10 nats are the difference of numbers near 1: what is left is right to the last bits of those."""
    logits = torch.randn(2000, generator=generator)
    expected = by_mpmath(logits, logits)
    got = bernoulli_kl(logits, logits).item()
    assert 0 < got < 1e-6
    assert abs(got - expected) < 2000 * 3e-16


def test_infinite_logits():
    inf = float("inf")
    ends = torch.tensor([inf, -inf], requires_grad=True)
    kl = bernoulli_kl(ends, 0.3)
    assert kl.item() == pytest.approx(by_mpmath(ends.detach(), torch.full((2,), 0.3)), rel=1e-7)  # 0.3 in float32
    kl.backward()
    assert ends.grad.abs().max() < 1e-25
    assert bernoulli_kl(torch.zeros(2), torch.tensor([0.0, inf])) == inf
    assert bernoulli_kl(torch.zeros(2), torch.tensor([0.0, -inf])) == inf


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
def test_gradients_are_those_of_the_smooth_function(dtype, tolerance, generator):
    logits, prior = pair(generator, dtype=dtype)
    (3 * bernoulli_kl(logits, prior)).backward()
    wide = [t.detach().double().requires_grad_() for t in (logits, prior)]
    q, p = (torch.sigmoid(t) for t in wide)
    smooth = 3 * (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).sum()
    (expected,) = torch.autograd.grad(smooth, wide[0])
    assert logits.grad.dtype == dtype
    assert (logits.grad.double() - expected).norm() <= tolerance * expected.norm()
    sampled = 3 * (p.detach() - rng.threshold_from_logits(logits).double() / rng.LEVELS)  # exact: q of the masks
    assert (prior.grad.double() - sampled).norm() <= tolerance * sampled.norm()


def test_one_number_or_a_row_as_prior(generator):
    logits = pair(generator, (6, 70))[0]
    row = torch.randn(70, generator=generator).requires_grad_()
    bernoulli_kl(logits, row).backward()
    whole = row.detach().expand(6, 70).clone().requires_grad_()
    kl = bernoulli_kl(logits, whole)
    kl.backward()
    torch.testing.assert_close(row.grad, whole.grad.sum(0))
    assert bernoulli_kl(logits, -1.5).item() == pytest.approx(by_scipy(logits, torch.full((6, 70), -1.5)), rel=1e-12)


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (1,), (5, 3, 3, 3)], ids=str)
def test_any_shape(shape, generator):
    logits, prior = pair(generator, shape)
    got = bernoulli_kl(logits, prior)
    assert got.item() == pytest.approx(by_scipy(logits, prior), rel=1e-12)
    got.backward()
    assert logits.grad.shape == shape


def test_strided_inputs_give_the_value_of_their_copies(generator):
    logits, prior = pair(generator, (70, 140))
    got = bernoulli_kl(logits.T[::2], prior[:, ::2].T)
    assert got.item() == pytest.approx(bernoulli_kl(logits.T[::2].contiguous(), prior[:, ::2].T.contiguous()).item())


def test_only_what_is_needed_is_computed(generator, monkeypatch):
    logits, prior = pair(generator)
    needs = []
    backend = backends.resolve(logits, prior)
    original = backend.bernoulli_kl_backward
    monkeypatch.setattr(backend, "bernoulli_kl_backward", lambda *a, **k: needs.append(k["needs"]) or original(*a, **k))
    bernoulli_kl(logits, prior.detach()).backward()
    bernoulli_kl(logits.detach(), prior).backward()
    assert needs == [(True, False), (False, True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_pass_opcheck(dtype, generator):
    logits, prior = pair(generator, (5, 70), dtype=dtype)
    torch.library.opcheck(OPS.bernoulli_kl.default, (logits, prior))
    detached = [t.detach() for t in (logits, prior)]
    torch.library.opcheck(
        OPS.bernoulli_kl_backward.default,
        (torch.ones((), dtype=torch.float64), *detached, True, False),
    )


def test_compiles_whole(generator):
    logits, prior = pair(generator)
    bound = lambda a, b: (bernoulli_kl(a, b) / 1000).sqrt()  # noqa: E731
    compiled = torch.compile(bound, fullgraph=True, backend="aot_eager")
    a, b = bound(logits, prior), compiled(logits, prior)
    torch.testing.assert_close(a, b)
    for p, q in zip(torch.autograd.grad(a, (logits, prior)), torch.autograd.grad(b, (logits, prior)), strict=True):
        torch.testing.assert_close(p, q)


def test_double_backward_raises(generator):
    logits, prior = pair(generator)
    (g,) = torch.autograd.grad(bernoulli_kl(logits, prior), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        g.sum().backward()


ONES = torch.ones(3, 4)
NAN = ONES.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(float("nan")))


@pytest.mark.parametrize(
    "logits, prior, error, message",
    [
        (ONES.long(), ONES, TypeError, "logits.*got torch.int64"),
        (ONES, ONES.long(), TypeError, "prior_logits.*int64"),
        (ONES, ONES.T, ValueError, r"prior_logits \(4, 3\).*\(3, 4\)"),
        (ONES, torch.ones(3, 4, device="meta"), ValueError, "prior_logits.*meta"),
        (NAN, ONES, ValueError, "bernoulli_kl: logits .*NaN"),
        (ONES, NAN, ValueError, "bernoulli_kl: prior_logits .*NaN"),
        (ONES.double(), NAN, ValueError, "prior_logits .*NaN"),
        (ONES, float("nan"), ValueError, "prior_logits .*NaN"),
    ],
)
def test_bad_input(logits, prior, error, message):
    with pytest.raises(error, match=message):
        bernoulli_kl(logits, prior)
