"""Gaussian and spike-and-slab layers: against autograd of the definition, closed-form moments and enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from stochprune import rng
from stochprune.functional import masked_linear, spike_and_slab_conv, spike_and_slab_linear
from tests.functional.definitions import AT, saved_bytes

OPS = torch.ops.stochprune


def tensors(generator, m=4, n=6, k=70, dtype=torch.float64):
    shapes = {"x": (m, k), "mu": (n, k), "rho": (n, k), "logits": (n, k), "bias": (n,)}
    return {name: torch.randn(*s, generator=generator, dtype=dtype).requires_grad_() for name, s in shapes.items()}


def definition(x, mu, rho, logits, bias, draw=AT["draw"]):
    at = {**AT, "draw": draw}
    w = mu + F.softplus(rho) * rng.normal(*mu.shape, **at).to(mu.dtype)
    if logits is not None:
        hard = (rng.uniform16(*mu.shape, **at) & 0x7FFF) < rng.threshold_from_logits(logits).int()
        mean = torch.sigmoid(logits)
        w = (hard + mean - mean.detach()) * w
    return F.linear(x, w, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slab_only", [True, False])
def test_values_and_gradients_equal_autograd_of_the_definition(dtype, slab_only, generator):
    t = tensors(generator, dtype=dtype)
    if slab_only:
        t["logits"] = None
    y, expected = spike_and_slab_linear(*t.values(), **AT), definition(*t.values())
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(y, expected, **tolerance)
    inputs = [v for v in t.values() if v is not None]
    loss = lambda out: (out.sin() * out).sum()  # noqa: E731
    for got, want in zip(
        torch.autograd.grad(loss(y), inputs), torch.autograd.grad(loss(expected), inputs), strict=True
    ):
        torch.testing.assert_close(got, want, **tolerance)


def test_plain_gaussian_passes_gradcheck(generator):
    t = tensors(generator, m=2, n=3, k=5)
    call = lambda x, mu, rho, bias: spike_and_slab_linear(x, mu, rho, None, bias, **AT)  # noqa: E731
    assert torch.autograd.gradcheck(call, [t[name] for name in ("x", "mu", "rho", "bias")])


def test_moments_of_a_linear_layer(generator):
    """E y = x (q mu)^T and Var y = x^2 (q (sigma^2 + mu^2) - q^2 mu^2)^T, over 4,000 draws."""
    t = {name: v.detach() for name, v in tensors(generator, m=3, n=2, k=20, dtype=torch.float32).items()}
    x, mu, rho, logits, bias = t.values()
    y = spike_and_slab_linear(x, mu, rho, logits, bias, seed=1, draw=0, stream=2, samples=4000)
    q, sigma = torch.sigmoid(logits), F.softplus(rho)
    mean, variance = F.linear(x, q * mu, bias), F.linear(x**2, q * (sigma**2 + mu**2) - (q * mu) ** 2)
    assert ((y.mean(0) - mean) / (variance / 4000).sqrt()).abs().max() < 4
    assert (y.var(0) / variance - 1).abs().max() < 0.2


def test_gradients_are_unbiased_for_the_expected_square_loss(generator):
    """Against the exact expectation: normals in closed form, masks by enumeration."""
    t = tensors(generator, m=3, n=1, k=3, dtype=torch.float32)
    x, mu, rho, logits, _ = t.values()
    x, draws = x.detach(), 5_000
    y = spike_and_slab_linear(x, mu, rho, logits, seed=3, draw=0, stream=1, samples=draws)
    got = torch.autograd.grad((y - 1).square().sum() / draws, (mu, rho))
    q, exact = torch.sigmoid(logits), 0.0
    for bits in itertools.product((0.0, 1.0), repeat=3):
        m = torch.tensor(bits)
        spread = F.linear(x**2, m * F.softplus(rho) ** 2)
        exact = exact + (m * q + (1 - m) * (1 - q)).prod() * ((F.linear(x, m * mu) - 1).square() + spread).sum()
    for mean, want in zip(got, torch.autograd.grad(exact, (mu, rho)), strict=True):
        assert (mean - want).norm() / want.norm() < 0.08


def test_a_vanishing_deviation_is_the_masked_layer(generator):
    x, mu, _, logits, bias = tensors(generator, dtype=torch.float32).values()
    y = spike_and_slab_linear(x, mu, torch.full_like(mu, -90.0), logits, bias, **AT)
    torch.testing.assert_close(y, masked_linear(x, mu, logits, bias, **AT))


@pytest.mark.parametrize("estimator", ["concrete", "hard_concrete", "expected"])
def test_other_estimators_are_those_of_masked_linear_on_the_slab(estimator, generator):
    x, mu, rho, logits, _ = tensors(generator).values()
    options = {**AT, "estimator": estimator, "temperature": 0.7}
    slab = mu + F.softplus(rho) * rng.normal(*mu.shape, **AT)
    y, expected = spike_and_slab_linear(x, mu, rho, logits, **options), masked_linear(x, slab, logits, **options)
    inputs = (x, mu, rho, logits)
    for got, want in zip(
        torch.autograd.grad(y.sin().sum(), inputs), torch.autograd.grad(expected.sin().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("slab_only", [True, False])
def test_convolutions_equal_autograd_of_the_definition(dimensions, slab_only, generator):
    size = [5, 6, 4][:dimensions]
    x = torch.randn(2, 4, *size, generator=generator, dtype=torch.float64)
    mu, rho, logits = torch.randn(3, 6, 2, *[2] * dimensions, generator=generator, dtype=torch.float64)
    bias = torch.randn(6, generator=generator, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, mu, rho, *([] if slab_only else [logits]), bias)]
    logits = None if slab_only else logits
    geometry = {"stride": 2, "padding": 1, "dilation": [2, 1, 1][:dimensions], "groups": 2}
    y = spike_and_slab_conv(x, mu, rho, logits, bias, **AT, **geometry, samples=2)
    convolve = [F.conv1d, F.conv2d, F.conv3d][dimensions - 1]
    expected = []
    for draw in (11, 12):
        at = {**AT, "draw": draw}
        w = mu + F.softplus(rho) * rng.normal(6, mu[0].numel(), **at).view(mu.shape)
        if logits is not None:
            u = rng.uniform16(6, mu[0].numel(), **at).view(mu.shape) & 0x7FFF
            mean = torch.sigmoid(logits)
            w = ((u < rng.threshold_from_logits(logits).int()) + mean - mean.detach()) * w
        expected.append(convolve(x, w, bias, **geometry))
    torch.testing.assert_close(y, torch.stack(expected))
    weights = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    for got, want in zip(
        torch.autograd.grad((y.sin() * weights).sum(), inputs),
        torch.autograd.grad((torch.stack(expected).sin() * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("slab_only", [True, False])
def test_convolutions_of_a_vector_of_draws(slab_only, generator):
    """Each slice is the call with its draw; the gradients are the sums over the slices."""
    x = torch.randn(3, 2, 4, 6, 5, generator=generator, dtype=torch.float64)
    mu, rho, logits = torch.randn(3, 6, 2, 2, 2, generator=generator, dtype=torch.float64)
    bias = torch.randn(6, generator=generator, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, mu, rho, *([] if slab_only else [logits]), bias)]
    logits = None if slab_only else logits
    options = {"seed": 4, "stream": 5, "padding": 1, "groups": 2}
    draws = torch.tensor([7, 2**32 - 1, 3])
    y = spike_and_slab_conv(x, mu, rho, logits, bias, draw=draws, **options)
    each = [spike_and_slab_conv(x[i], mu, rho, logits, bias, draw=int(d), **options) for i, d in enumerate(draws)]
    torch.testing.assert_close(y, torch.stack(each))
    got = torch.autograd.grad(y.sin().sum(), inputs)
    for g, want in zip(got, torch.autograd.grad(torch.stack(each).sin().sum(), inputs), strict=True):
        torch.testing.assert_close(g, want)


def test_convolution_operators_pass_opcheck(generator):
    x = torch.randn(2, 2, 5, 5, generator=generator)
    mu, rho, logits = (t.requires_grad_() for t in torch.randn(3, 3, 2, 2, 2, generator=generator).unbind())
    options = (torch.tensor([1]), torch.tensor([2]), 3, "straight_through", 1.0, 0, 0, [2, 1, 1, 0, 1, 2, 0, 0, 0, 1])
    torch.library.opcheck(OPS.spike_and_slab.default, (x, mu, rho, logits, None, *options))


def test_draws_samples_and_vmap(generator):
    x, mu, rho, logits, bias = tensors(generator).values()
    layer = lambda t, **o: spike_and_slab_linear(t, mu, rho, logits, bias, **{**AT, **o})  # noqa: E731
    y = layer(x, samples=3)
    for s in range(3):
        torch.testing.assert_close(y[s], definition(x, mu, rho, logits, bias, draw=11 + s))
    each = layer(x, draw=torch.arange(4))
    for i in range(4):
        torch.testing.assert_close(each[i], layer(x[i], draw=i))
    batch = torch.stack([x, 2 * x])
    torch.testing.assert_close(torch.vmap(layer)(batch), layer(batch))


@pytest.mark.parametrize("slab_only", [True, False])
def test_operators_pass_opcheck(slab_only, generator):
    x, mu, rho, logits, bias = tensors(generator, dtype=torch.float32).values()
    logits = None if slab_only else logits
    options = (torch.tensor([1]), torch.tensor([2]), 3, "straight_through", 1.0, 0, 0, [])
    torch.library.opcheck(OPS.spike_and_slab.default, (x, mu, rho, logits, bias, *options))
    grad = torch.ones(4, 6)
    detached = [None if t is None else t.detach() for t in (x, mu, rho, logits)]
    torch.library.opcheck(OPS.spike_and_slab_backward.default, (grad, *detached, *options, True, True, False, True))


@pytest.mark.slow
def test_compiled_gives_the_eager_bits(generator):
    x, mu, rho, logits, bias = tensors(generator, dtype=torch.float32).values()

    def step(draw):
        return spike_and_slab_linear(x, mu, rho, logits, bias, seed=torch.tensor([7]), draw=draw, stream=3)

    draw = torch.tensor([3])
    assert torch.equal(torch.compile(step, fullgraph=True)(draw), step(draw))


def test_nothing_weight_sized_is_saved(generator):
    inputs = tensors(generator, n=64, dtype=torch.float32).values()
    saved = saved_bytes(lambda: spike_and_slab_linear(*inputs, **AT), inputs)
    assert sum(saved) == 16  # the seed and the draw


def test_double_backward_raises(generator):
    x, mu, rho, logits, bias = tensors(generator).values()
    (g,) = torch.autograd.grad(
        spike_and_slab_linear(x, mu, rho, logits, bias, **AT).square().sum(), mu, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once"):
        g.sum().backward()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"rho": torch.ones(7, 36)}, ValueError, r"rho \(7, 36\) and mu \(7, 37\)"),
        ({"mu": torch.ones(7, 36)}, ValueError, r"x \(5, 37\) and mu \(7, 36\)"),
        ({"logits": torch.ones(7, 37, dtype=torch.int64)}, TypeError, "logits.*int64"),
        ({"logits": torch.full((7, 37), float("nan"))}, ValueError, "logits .*NaN"),
        ({"estimator": "reinforce"}, ValueError, "estimator.*'reinforce'"),
        ({"draw": 2**32}, ValueError, "draw.*got 4294967296"),
    ],
)
def test_bad_input(change, error, message):
    given = {"x": torch.ones(5, 37), "mu": torch.ones(7, 37), "rho": torch.ones(7, 37), **AT, **change}
    with pytest.raises(error, match=message):
        spike_and_slab_linear(**given)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"groups": 2}, ValueError, r"mu \(3, 2, 2, 2\).*2 groups"),
        ({"stride": (1, 2, 3)}, ValueError, r"stride.*got \(1, 2, 3\)"),
        ({"rho": torch.ones(3, 2, 2, 1)}, ValueError, r"rho \(3, 2, 2, 1\) and mu \(3, 2, 2, 2\)"),
        ({"bias": torch.ones(2)}, ValueError, r"bias \(2,\).*mu"),
        ({"draw": torch.arange(2)}, ValueError, r"x \(1, 2, 5, 5\).*\b2\b.*draw"),
        (
            {"draw": torch.arange(2), "x": torch.ones(2, 1, 3, 5, 5)},
            ValueError,
            r"x \(2, 1, 3, 5, 5\).* mu \(3, 2, 2, 2\)",
        ),
        ({"mu": torch.ones(3, 2, 2, 2).double()}, TypeError, r"x .*torch\.float32.* mu .*torch\.float64"),
    ],
)
def test_bad_input_of_convolutions(change, error, message):
    weight = torch.ones(3, 2, 2, 2)
    given = {"x": torch.ones(1, 2, 5, 5), "mu": weight, "rho": weight, **AT, **change}
    with pytest.raises(error, match=message):
        spike_and_slab_conv(**given)
