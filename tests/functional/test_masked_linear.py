"""The op: gradients against independent derivations, what is saved, compilation, and its errors."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import stochprune as sp
from stochprune.functional import masked_linear
from tests.backends.cases import ESTIMATORS
from tests.functional.definitions import AT, mask_at, recorded, saved_bytes

OPS = torch.ops.stochprune
DRAWS = 4_000  # of the Monte Carlo tests


def tensors(generator, m=4, n=6, k=70, dtype=torch.float64):
    shapes = ((m, k), (n, k), (n, k), (n,))
    return [torch.randn(*s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_equal_autograd_of_the_surrogate(estimator, generator):
    x, weight, logits, bias = inputs = tensors(generator)
    y = masked_linear(*inputs, **AT, estimator=estimator, temperature=0.6)
    expected = F.linear(x, mask_at(logits, estimator, 0.6) * weight, bias)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    loss = lambda out: (out.sin() * out).sum()  # noqa: E731
    for got, want in zip(
        torch.autograd.grad(loss(y), inputs), torch.autograd.grad(loss(expected), inputs), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_expected_passes_gradcheck(generator):
    inputs = tensors(generator, m=2, n=3, k=5)
    assert torch.autograd.gradcheck(lambda *t: masked_linear(*t, **AT, estimator="expected"), inputs)


def _mean_gradients(loss, estimator, draws, weight, logits, x):
    sums = [torch.zeros_like(weight), torch.zeros_like(weight)]
    for start in range(0, draws, 1000):  # float32: the fast backend
        y = masked_linear(x, weight, logits, seed=3, draw=start, stream=1, estimator=estimator, samples=1000)
        grads = torch.autograd.grad(torch.vmap(loss)(y).sum(), (weight, logits))
        sums = [s + g for s, g in zip(sums, grads, strict=True)]
    return [s / draws for s in sums]


def _enumerated(loss, weight, logits, x):
    """E[loss] over all hard masks of a tiny layer, differentiable in weight and logits."""
    total = torch.zeros((), dtype=weight.dtype)
    q = torch.sigmoid(logits)
    for bits in itertools.product((0.0, 1.0), repeat=weight.numel()):
        m = torch.tensor(bits, dtype=weight.dtype).view_as(weight)
        total = total + (m * q + (1 - m) * (1 - q)).prod() * loss(F.linear(x, m * weight))
    return total


@pytest.mark.parametrize("estimator", ["straight_through", "straight_through_concrete"])
def test_weight_gradient_is_unbiased_for_the_loss_over_hard_masks(estimator, generator):
    x, weight, logits, _ = tensors(generator, m=3, n=2, k=2, dtype=torch.float32)
    loss = lambda y: (y - 1).square().mean()  # noqa: E731
    got, _ = _mean_gradients(loss, estimator, DRAWS, weight, logits, x)
    (want,) = torch.autograd.grad(_enumerated(loss, weight, logits, x), weight)
    assert (got - want).norm() / want.norm() < 0.08  # a few standard errors of 20,000 draws


def test_straight_through_logit_gradient_is_unbiased_for_a_multilinear_loss(generator):
    x, weight, logits, _ = tensors(generator, m=1, n=2, k=3, dtype=torch.float32)
    loss = lambda y: y[..., 0].prod() * y[..., 1].prod()  # noqa: E731  each mask enters once
    _, got = _mean_gradients(loss, "straight_through", DRAWS, weight, logits, x)
    (want,) = torch.autograd.grad(_enumerated(loss, weight, logits, x), logits)
    assert (got - want).norm() / want.norm() < 0.1


def test_straight_through_logit_gradient_is_biased_for_a_square_loss(generator):
    x, weight, logits, _ = tensors(generator, m=1, n=1, k=1, dtype=torch.float32)
    loss = lambda y: y.square().sum()  # noqa: E731
    _, got = _mean_gradients(loss, "straight_through", DRAWS, weight, logits, x)
    (want,) = torch.autograd.grad(_enumerated(loss, weight, logits, x), logits)
    # d/dq of q (w x)^2 is (w x)^2, the straight-through gradient 2 m (w x)^2: twice q too large
    ratio = 2 * torch.sigmoid(logits)
    torch.testing.assert_close(got / want, ratio.detach(), rtol=0.1, atol=0)


def test_concrete_gradient_is_unbiased_for_the_loss_over_concrete_masks(generator):
    x, weight, logits, _ = tensors(generator, m=2, n=1, k=1, dtype=torch.float32)
    loss = lambda y: (y - 1).square().mean()  # noqa: E731
    got = _mean_gradients(loss, "concrete", DRAWS, weight, logits, x)
    v = (torch.arange(32768, dtype=torch.float64) + 0.5) / 32768  # every uniform once
    z = torch.sigmoid(logits - torch.logit(v).float())
    expected_loss = (z.view(-1, 1, 1) * weight * x - 1).square().mean()
    for mean, want in zip(got, torch.autograd.grad(expected_loss, (weight, logits)), strict=True):
        assert (mean - want).norm() / want.norm() < 0.1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_operators_pass_opcheck(estimator, generator):
    x, weight, logits, bias = tensors(generator, dtype=torch.float32)
    options = (torch.tensor([1]), torch.tensor([2]), 3, estimator, 1.0, 0, 0)
    torch.library.opcheck(OPS.masked_linear.default, (x, weight, logits, bias, *options))
    detached = [t.detach() for t in (x, weight, logits)]
    grad = torch.ones(4, 6)
    torch.library.opcheck(OPS.masked_linear_backward.default, (grad, *detached, *options, True, False, True))


def test_compiled_gives_the_eager_bits_without_recompiling(generator):
    x, weight, logits, bias = tensors(generator, dtype=torch.float32)

    def step(draw):
        return masked_linear(x, weight, logits, bias, seed=torch.tensor([7]), draw=draw, stream=3)

    compiled = torch.compile(step, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(3):
            draw = torch.tensor([number])
            a, b = step(draw), compiled(draw)
            assert torch.equal(a, b)
            for p, q in zip(
                torch.autograd.grad(a.sum(), (weight, logits)),
                torch.autograd.grad(b.sum(), (weight, logits)),
                strict=True,
            ):
                assert torch.equal(p, q)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_whole_with_a_temperature_that_changes(generator, dynamic):
    x, weight, logits, bias = tensors(generator, dtype=torch.float32)
    at = {"seed": torch.tensor([7]), "draw": torch.tensor([2]), "stream": 3, "estimator": "concrete"}

    def step(temperature):
        return masked_linear(x, weight, logits, bias, **at, temperature=temperature)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for temperature in (1.0, 0.9, 0.5):
        assert torch.equal(compiled(temperature), step(temperature))


def test_checkpointing_gives_the_same_gradients(generator):
    inputs = tensors(generator, dtype=torch.float32)
    run = lambda *t: masked_linear(*t, **AT).sin()  # noqa: E731
    plain = torch.autograd.grad(run(*inputs).sum(), inputs)
    for p, q in zip(
        plain, torch.autograd.grad(checkpoint(run, *inputs, use_reentrant=False).sum(), inputs), strict=True
    ):
        assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_but_the_inputs_and_two_integers_is_saved(dtype, generator):
    inputs = tensors(generator, n=64, dtype=dtype)
    assert sum(saved_bytes(lambda: masked_linear(*inputs, **AT), inputs)) == 16  # the seed and the draw


def test_frozen_tensors_get_no_gradient_computed(generator, monkeypatch):
    x, weight, logits, bias = tensors(generator, dtype=torch.float32)
    needs = recorded(monkeypatch, sp.backends.resolve(x, weight, logits), "masked_linear_backward", "needs")
    masked_linear(x.detach(), weight.detach(), logits, bias, **AT).sum().backward()
    masked_linear(x, weight, logits.detach(), bias, **AT).sum().backward()
    assert needs == [(False, False, True), (True, True, False)]


def test_double_backward_raises():
    w = torch.ones(2, 2, requires_grad=True)
    y = masked_linear(torch.ones(1, 2), w, torch.ones(2, 2), **AT)
    (g,) = torch.autograd.grad(y.square().sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        g.sum().backward()


def test_samples_are_consecutive_draws(generator):
    x, weight, logits, bias = tensors(generator)
    x3 = x.view(2, 2, -1)
    y = masked_linear(x3, weight, logits, bias, **AT, samples=3)
    assert y.shape == (3, 2, 2, 6)
    for s in range(3):
        assert torch.equal(y[s], masked_linear(x3, weight, logits, bias, **{**AT, "draw": 11 + s}))
    vector = masked_linear(x3.expand(3, 2, 2, -1), weight, logits, bias, **{**AT, "draw": torch.tensor([11, 12, 13])})
    assert torch.equal(vector, y)


def test_a_vector_of_draws_gives_each_example_its_own_mask(generator):
    x, weight, logits, bias = tensors(generator)
    y = masked_linear(x, weight, logits, bias, **{**AT, "draw": torch.arange(4)})
    for i in range(4):
        torch.testing.assert_close(y[i], masked_linear(x[i], weight, logits, bias, **{**AT, "draw": i}))


def test_gradients_sum_over_draws(generator):
    inputs = tensors(generator)
    many = torch.autograd.grad(masked_linear(*inputs, **AT, samples=3).sin().sum(), inputs)
    single = [
        torch.autograd.grad(masked_linear(*inputs, **{**AT, "draw": 11 + s}).sin().sum(), inputs) for s in range(3)
    ]
    for got, parts in zip(many, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(got, sum(parts))


def test_vmap_over_the_input(generator):
    x, weight, logits, bias = tensors(generator)
    batch = torch.stack([x, 2 * x, 3 * x])
    got = torch.vmap(lambda t: masked_linear(t, weight, logits, bias, **AT))(batch)
    torch.testing.assert_close(got, masked_linear(batch, weight, logits, bias, **AT))
    weights = torch.stack([weight, 2 * weight])
    got = torch.vmap(lambda w: masked_linear(x, w, logits, bias, **AT))(weights)
    torch.testing.assert_close(got, torch.stack([masked_linear(x, w, logits, bias, **AT) for w in weights]))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_per_example_gradients_by_torch_func(estimator, generator):
    x, weight, logits, bias = (t.detach() for t in tensors(generator))

    def loss(weight, logits, bias, x):
        return masked_linear(x, weight, logits, bias, **AT, estimator=estimator).sin().sum()

    got = torch.vmap(torch.func.grad(loss, (0, 1, 2, 3)), (None, None, None, 0))(weight, logits, bias, x)
    for i, row in enumerate(x):
        inputs = [t.clone().requires_grad_() for t in (weight, logits, bias, row)]
        for g, expected in zip(got, torch.autograd.grad(loss(*inputs), inputs), strict=True):
            torch.testing.assert_close(g[i], expected)


def test_autocast_computes_in_its_dtype_and_leaves_gradients_wide(generator):
    x, weight, logits, bias = tensors(generator, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = masked_linear(x, weight, logits, bias, **AT)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), masked_linear(x, weight, logits, bias, **AT), rtol=0.05, atol=0.2)
    grads = torch.autograd.grad(y.sum(), (x, weight, logits, bias))
    assert all(g.dtype == torch.float32 for g in grads)


def test_a_nan_logit_is_refused(generator):
    x, weight, logits, bias = (t.detach() for t in tensors(generator, dtype=torch.float32))
    logits[3, 69] = float("nan")
    with pytest.raises(ValueError, match=r"logits .*NaN"):
        masked_linear(x, weight, logits, bias, **AT)


ONES = {"x": torch.ones(5, 37), "weight": torch.ones(7, 37), "logits": torch.ones(7, 37), "bias": torch.ones(7)}


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"weight": torch.ones(7, 36)}, ValueError, r"x \(5, 37\) and weight \(7, 36\)"),
        ({"x": torch.ones(())}, ValueError, r"x \(\) and weight"),
        ({"logits": torch.ones(37, 7)}, ValueError, r"logits \(37, 7\) and weight \(7, 37\)"),
        ({"bias": torch.ones(6)}, ValueError, r"bias \(6,\)"),
        ({"x": torch.ones(5, 37, dtype=torch.int64)}, TypeError, "x.*got torch.int64"),
        ({"weight": torch.ones(7, 37).double()}, TypeError, r"x .*torch\.float32.* weight .*torch\.float64"),
        ({"weight": torch.ones(7, 37, device="meta")}, ValueError, "weight .*meta"),
        ({"seed": -1}, ValueError, "seed.*got -1"),
        ({"draw": 2**32}, ValueError, "draw.*got 4294967296"),
        ({"draw": 2**32 - 2, "samples": 3}, ValueError, "draw.*got 4294967294"),
        ({"draw": torch.tensor([1.0])}, TypeError, "draw.*float32"),
        ({"draw": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, r"draw.*got shape \(2, 2\)"),
        ({"draw": torch.arange(4)}, ValueError, r"x .*\b4\b"),
        ({"draw": torch.arange(4), "samples": 2}, ValueError, "samples=2.*draw.*4"),
        ({"samples": 0}, ValueError, "samples.*got 0"),
        ({"stream": 2**31}, ValueError, "stream.*got 2147483648"),
        ({"estimator": "reinforce"}, ValueError, "estimator.*'reinforce'.*straight_through"),
        ({"temperature": 0.0}, ValueError, "temperature.*got 0.0"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        masked_linear(**{**ONES, **AT, **change})
