"""Local reparameterisation: derivatives by finite differences, moments against the masks and weights it stands for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stochprune import rng
from stochprune.functional import local_reparameterised_conv, local_reparameterised_linear, spike_and_slab_linear
from tests.functional.definitions import AT, saved_bytes

OPS = torch.ops.stochprune
RANDOM = [("logits",), ("rho",), ("logits", "rho")]


def tensors(generator, m=4, n=3, k=5, dtype=torch.float64):
    shapes = {"x": (m, k), "weight": (n, k), "logits": (n, k), "rho": (n, k), "bias": (n,)}
    return {name: torch.randn(*s, generator=generator, dtype=dtype).requires_grad_() for name, s in shapes.items()}


@pytest.mark.parametrize("random", RANDOM, ids="+".join)
def test_linear_passes_gradcheck(random, generator):
    t = tensors(generator)
    names = ["x", "weight", *random, "bias"]
    call = lambda *a: local_reparameterised_linear(**dict(zip(names, a, strict=True)), **AT, samples=2)  # noqa: E731
    assert torch.autograd.gradcheck(call, [t[name] for name in names])


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolution_passes_gradcheck(dimensions, generator):
    x = torch.randn(2, 4, *[5] * dimensions, generator=generator, dtype=torch.float64)
    w, logits, rho = torch.randn(3, 2, 2, *[2] * dimensions, generator=generator, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, w, logits, rho)]
    call = lambda *a: local_reparameterised_conv(*a, **AT, stride=2, padding=1, groups=2)  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("random", RANDOM, ids="+".join)
def test_mean_and_variance_are_those_of_the_random_weights(random, generator):
    t = {name: v.detach().float() for name, v in tensors(generator, m=2, n=2, k=60).items()}
    logits, rho = (t[name] if name in random else None for name in ("logits", "rho"))
    draws = 6000
    y = local_reparameterised_linear(
        t["x"], t["weight"], logits, rho, t["bias"], seed=1, draw=0, stream=2, samples=draws
    )
    slab = torch.full_like(t["weight"], -60.0) if rho is None else rho
    w = spike_and_slab_linear(t["x"], t["weight"], slab, logits, t["bias"], seed=4, draw=0, stream=2, samples=draws)
    assert ((y.mean(0) - w.mean(0)) / (2 * y.var(0) / draws).sqrt()).abs().max() < 4
    assert (y.var(0) / w.var(0) - 1).abs().max() < 0.15


def test_the_noise_is_the_contract_s(generator):
    t = tensors(generator, m=6, n=70)
    x = t["x"].view(2, 3, 5)
    y = local_reparameterised_linear(x, t["weight"], t["logits"], **AT, row_offset=9)
    q = torch.sigmoid(t["logits"])
    mean, variance = F.linear(x, q * t["weight"]), F.linear(x**2, q * (1 - q) * t["weight"] ** 2)
    e = rng.normal(6, 70, **AT, row_offset=9).view(2, 3, 70)
    torch.testing.assert_close(y, mean + variance.sqrt() * e, rtol=1e-6, atol=1e-6)


def test_a_convolution_over_the_whole_input_is_the_linear_layer(generator):
    t = tensors(generator, m=3, n=4, k=12)
    shape = lambda v: v.view(-1, 3, 2, 2)  # noqa: E731
    y = local_reparameterised_conv(
        shape(t["x"]), shape(t["weight"]), shape(t["logits"]), None, t["bias"], **AT, samples=2
    )
    expected = local_reparameterised_linear(t["x"], t["weight"], t["logits"], None, t["bias"], **AT, samples=2)
    torch.testing.assert_close(y.flatten(2), expected)


def test_gradients_are_finite_where_the_variance_vanishes(generator):
    t = tensors(generator)
    x = torch.zeros_like(t["x"]).requires_grad_()
    y = local_reparameterised_linear(x, t["weight"], t["logits"], **AT)
    assert (y == 0).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), (x, t["weight"], t["logits"])))


def test_operators_pass_opcheck(generator):
    x, weight, logits, rho, bias = tensors(generator, dtype=torch.float32).values()
    options = (torch.tensor([1]), torch.tensor([2]), 3, "straight_through", 1.0, 0, 0, [])
    torch.library.opcheck(OPS.local_reparameterisation.default, (x, weight, logits, rho, bias, *options))
    torch.library.opcheck(OPS.local_reparameterisation.default, (x, weight, logits, None, None, *options))
    detached = [t.detach() for t in (x, weight, logits, rho)]
    torch.library.opcheck(
        OPS.local_reparameterisation_backward.default,
        (torch.ones(1, 4, 3), torch.ones(4, 3), *detached, *options, True, True),
    )


@pytest.mark.parametrize("last", [("x",), ("weight",), ("x", "weight")], ids="+".join)
def test_channels_last_passes_opcheck(last, generator):
    x, weight = torch.randn(2, 4, 6, 6, generator=generator), torch.randn(8, 4, 3, 3, generator=generator)
    logits, grad = torch.randn(8, 4, 3, 3, generator=generator), torch.randn(2, 2, 8, 4, 4, generator=generator)
    x, weight, logits = (
        t.to(memory_format=torch.channels_last if name in last else torch.contiguous_format)
        for name, t in (("x", x), ("weight", weight), ("weight", logits))
    )
    options = (
        torch.tensor([1]),
        torch.tensor([2, 3]),
        3,
        "straight_through",
        1.0,
        0,
        0,
        [1, 1, 0, 0, 1, 1, 0, 0, 0, 1],
    )
    torch.library.opcheck(
        OPS.local_reparameterisation.default,
        (x, weight, logits, None, None, *options),
        test_utils="test_faketensor",
    )
    y, deviation = OPS.local_reparameterisation(x, weight, logits, None, None, *options)
    given = (grad, deviation, x, weight, logits, None, *options, True, True)
    torch.library.opcheck(OPS.local_reparameterisation_backward.default, given, test_utils="test_faketensor")
    plain, _ = OPS.local_reparameterisation(
        x.contiguous(), weight.contiguous(), logits.contiguous(), None, None, *options
    )
    torch.testing.assert_close(y, plain)


@pytest.mark.slow
def test_compiled_gives_the_eager_values(generator):
    x, weight, logits, _, _ = tensors(generator, dtype=torch.float32).values()
    step = lambda: local_reparameterised_linear(x, weight, logits, seed=torch.tensor([7]), draw=3, stream=3)  # noqa: E731
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(), step())


@pytest.mark.parametrize("trained", [("x",), ("logits",), ("weight", "logits")], ids="+".join)
def test_only_some_need_gradients(trained, generator):
    t = tensors(generator)
    inputs = {name: v if name in trained else v.detach() for name, v in t.items() if name != "rho"}
    some = torch.autograd.grad(local_reparameterised_linear(**inputs, **AT).sum(), [t[name] for name in trained])
    every = local_reparameterised_linear(**{name: t[name] for name in inputs}, **AT)
    for got, want in zip(some, torch.autograd.grad(every.sum(), [t[name] for name in trained]), strict=True):
        torch.testing.assert_close(got, want)


def test_nothing_weight_sized_is_saved(generator):
    t = tensors(generator, m=2, n=64, k=70, dtype=torch.float32)
    saved = saved_bytes(lambda: local_reparameterised_linear(**t, **AT), t.values())
    assert sum(saved) == 16 + 2 * 64 * 4  # the seed and the draw, and the standard deviations in float32


def test_autocast_computes_in_its_dtype(generator):
    t = tensors(generator, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = local_reparameterised_linear(**t, **AT)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), local_reparameterised_linear(**t, **AT), rtol=0.05, atol=0.2)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.sum(), list(t.values())))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"logits": None}, ValueError, "logits.*rho"),
        ({"rho": torch.ones(7, 36)}, ValueError, r"rho \(7, 36\) and weight \(7, 37\)"),
        ({"x": torch.ones(5, 36)}, ValueError, r"x \(5, 36\) and weight \(7, 37\)"),
        ({"weight": torch.ones(7, 37).double()}, TypeError, r"x .*torch\.float32.* weight .*torch\.float64"),
        ({"draw": torch.arange(3)}, ValueError, "one draw.*got 3"),
        ({"row_offset": 2**32}, ValueError, "row_offset 4294967296"),
        ({"logits": torch.ones(7, 37, dtype=torch.int64)}, TypeError, "logits.*int64"),
    ],
)
def test_bad_input(change, error, message):
    given = {"x": torch.ones(5, 37), "weight": torch.ones(7, 37), "logits": torch.ones(7, 37), **AT, **change}
    with pytest.raises(error, match=message):
        local_reparameterised_linear(**given)


@pytest.mark.parametrize(
    "change, message",
    [({"groups": 2}, "2 groups"), ({"stride": 0}, "stride.*got 0")],
)
def test_bad_geometry(change, message):
    with pytest.raises(ValueError, match=message):
        local_reparameterised_conv(
            torch.ones(1, 2, 5, 5), torch.ones(3, 2, 2, 2), torch.ones(3, 2, 2, 2), **AT, **change
        )
