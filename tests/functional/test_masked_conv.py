"""Masked convolutions: values and gradients against torch's own, many masks, what is saved, compilation, errors."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import stochprune as sp
from stochprune import functional
from stochprune.functional import masked_conv2d
from stochprune.functional._geometry import Geometry
from tests.backends.cases import ESTIMATORS
from tests.functional.definitions import AT, mask_at, recorded, saved_bytes

op = sys.modules["stochprune.functional._product"]
OPS = torch.ops.stochprune

# dimensions, transposed, shape of x, of the weight, options
CASES = {
    "1d": (1, False, (3, 4, 11), (6, 4, 3), {"padding": 1}),
    "2d": (2, False, (3, 4, 7, 6), (6, 4, 3, 3), {}),
    "2d grouped, strided, dilated": (
        2,
        False,
        (2, 4, 9, 8),
        (6, 2, 3, 2),
        {"groups": 2, "stride": (2, 1), "dilation": (1, 2), "padding": (1, 0)},
    ),
    "2d same, even kernel": (2, False, (2, 4, 7, 6), (6, 4, 2, 3), {"padding": "same", "dilation": (3, 1)}),
    "2d valid, depthwise": (2, False, (2, 4, 7, 6), (8, 1, 3, 3), {"padding": "valid", "groups": 4}),
    "3d": (3, False, (2, 2, 5, 4, 4), (3, 2, 2, 3, 3), {"padding": 1, "stride": 2}),
    "transposed 1d": (1, True, (3, 4, 11), (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "transposed 2d": (2, True, (2, 4, 5, 4), (4, 3, 3, 3), {"groups": 2, "stride": (2, 1), "dilation": (1, 2)}),
    "transposed 3d": (3, True, (2, 2, 4, 3, 3), (2, 3, 2, 2, 2), {"stride": 2}),
}


def functions(dimensions, transposed):
    """The masked function and torch's."""
    stem = f"conv_transpose{dimensions}d" if transposed else f"conv{dimensions}d"
    return getattr(functional, f"masked_{stem}"), getattr(F, stem)


def tensors(generator, x=(3, 4, 7, 6), weight=(6, 4, 3, 3), outputs=None, dtype=torch.float64):
    shapes = (x, weight, weight, (outputs or weight[0],))
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_torchs_convolution_of_the_masked_weight(case, estimator, generator):
    dimensions, transposed, x_shape, w_shape, options = CASES[case]
    masked, plain = functions(dimensions, transposed)
    outputs = w_shape[1] * options.get("groups", 1) if transposed else w_shape[0]
    inputs = tensors(generator, x_shape, w_shape, outputs)
    x, weight, logits, bias = inputs
    y = masked(*inputs, **AT, estimator=estimator, temperature=0.6, **options)
    expected = plain(x, mask_at(logits, estimator, 0.6) * weight, bias, **options)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    grad = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    got, want = torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_narrower_dtypes(dtype, tolerance, generator):
    exact = tensors(generator)
    narrow = [t.detach().to(dtype).requires_grad_() for t in exact]
    exact = [t.detach().double().requires_grad_() for t in narrow]
    y, expected = (masked_conv2d(*inputs, **AT, padding=1) for inputs in (narrow, exact))
    assert y.dtype == dtype
    grad = torch.randn(y.shape, generator=generator).to(dtype)
    got = (y, *torch.autograd.grad(y, narrow, grad))
    want = (expected, *torch.autograd.grad(expected, exact, grad.double()))
    for g, w in zip(got, want, strict=True):
        assert g.dtype == dtype and (g.double() - w).norm() / w.norm() < tolerance


def test_channels_last_stays_and_gives_the_same_mask(generator):
    inputs = tensors(generator, dtype=torch.float32)
    x, weight, logits = (t.detach().to(memory_format=torch.channels_last).requires_grad_() for t in inputs[:3])
    y = masked_conv2d(x, weight, logits, inputs[3], **AT, padding=1)
    expected = masked_conv2d(*inputs, **AT, padding=1)
    assert y.is_contiguous(memory_format=torch.channels_last) and not expected.is_contiguous(
        memory_format=torch.channels_last
    )
    torch.testing.assert_close(y, expected)
    got = torch.autograd.grad(y.sin().sum(), (x, weight, logits))
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    for g, w in zip(got, torch.autograd.grad(expected.sin().sum(), inputs[:3]), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


def test_samples_are_consecutive_draws(generator):
    inputs = tensors(generator)
    y = masked_conv2d(*inputs, **AT, samples=3)
    assert y.shape == (3, 3, 6, 5, 4)
    for s in range(3):
        torch.testing.assert_close(y[s], masked_conv2d(*inputs, **{**AT, "draw": 11 + s}))
    x, *rest = inputs
    vector = masked_conv2d(x.expand(3, *x.shape), *rest, **{**AT, "draw": torch.tensor([11, 12, 13])})
    torch.testing.assert_close(vector, y)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("limit, examples", [("SCRATCH", 1), ("CACHED", 2)])
@pytest.mark.parametrize("together", [1, 2, 5])  # draws of a group
def test_draws_that_run_as_groups_keep_their_own_masks(transposed, limit, examples, together, generator, monkeypatch):
    masked, _ = functions(2, transposed)
    inputs = tensors(generator, (5, examples, 4, 7, 6), (4, 6, 3, 3) if transposed else (6, 4, 3, 3), 6)
    x, *rest = inputs
    draws = torch.tensor([7, 0, 2**32 - 1, 3, 7])
    apart = torch.stack([masked(x[i], *rest, **{**AT, "draw": int(draws[i])}) for i in range(5)])
    numbers = rest[0].numel() + x[0].numel() + apart[0].numel()  # that count towards the limit
    monkeypatch.setattr(op, limit, 8 * together * numbers)
    geometry = Geometry([1, 1], [0, 0], [1, 1], transposed, [0, 0], 1).packed()
    groups = [part.stop - part.start for part in op._parts(x, rest[0], geometry)]
    assert groups == {1: [1] * 5, 2: [2, 2, 1], 5: [5]}[together]
    y = masked(x, *rest, **{**AT, "draw": draws})
    assert y.is_contiguous()
    torch.testing.assert_close(y, apart)
    for g, w in zip(
        torch.autograd.grad(y.sin().sum(), inputs), torch.autograd.grad(apart.sin().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(g, w)


def test_gradients_sum_over_draws(generator):
    inputs = tensors(generator, dtype=torch.float32)
    many = torch.autograd.grad(masked_conv2d(*inputs, **AT, samples=3).sin().sum(), inputs)
    single = [
        torch.autograd.grad(masked_conv2d(*inputs, **{**AT, "draw": 11 + s}).sin().sum(), inputs) for s in range(3)
    ]
    for got, parts in zip(many, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(got, sum(parts), rtol=1e-4, atol=1e-4)


def test_an_input_without_a_batch(generator):
    x, *rest = tensors(generator)
    y = masked_conv2d(x[0], *rest, **AT)
    assert y.shape == (6, 5, 4)
    torch.testing.assert_close(y, masked_conv2d(x, *rest, **AT)[0])
    assert masked_conv2d(x[0], *rest, **AT, samples=2).shape == (2, 6, 5, 4)
    assert masked_conv2d(x[:0], *rest, **AT).shape == (0, 6, 5, 4)


def test_expected_passes_gradcheck(generator):
    inputs = tensors(generator, (2, 2, 4, 4), (3, 2, 2, 2))
    assert torch.autograd.gradcheck(lambda *t: masked_conv2d(*t, **AT, estimator="expected"), inputs)


@pytest.mark.parametrize("transposed, draws", [(False, 1), (True, 1), (False, 3)])
def test_operators_pass_opcheck(transposed, draws, generator):
    x, weight, logits, bias = tensors(generator, (1, 4, 7, 6), (4, 4, 3, 3), dtype=torch.float32)
    numbers = (torch.tensor([1]), torch.arange(draws), 3, "straight_through", 1.0, 0, 0)
    geometry = op.Geometry((2, 2), (1, 1), (1, 1), transposed, (0, 0), 1).packed()
    assert op.Geometry.of(geometry).packed() == geometry
    x = x.detach().expand(*([draws] if draws > 1 else []), 1, *x.shape[1:]).clone().requires_grad_()
    operator = OPS.masked_convolution.default
    torch.library.opcheck(operator, (x, weight, logits, bias, *numbers, geometry))
    detached = [t.detach() for t in (x, weight, logits)]
    grad = torch.ones_like(operator(*detached, None, *numbers, geometry))
    torch.library.opcheck(
        OPS.masked_convolution_backward.default,
        (grad, *detached, *numbers, geometry, True, False, True),
    )


def test_compiled_gives_the_eager_bits_without_recompiling(generator):
    inputs = tensors(generator, dtype=torch.float32)

    def step(draw):
        return masked_conv2d(*inputs, seed=torch.tensor([7]), draw=draw, stream=3, padding="same")

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(3):
            draw = torch.tensor([number])
            a, b = step(draw), compiled(draw)
            assert torch.equal(a, b)
            for p, q in zip(torch.autograd.grad(a.sum(), inputs), torch.autograd.grad(b.sum(), inputs), strict=True):
                assert torch.equal(p, q)


def test_checkpointing_gives_the_same_gradients(generator):
    inputs = tensors(generator, dtype=torch.float32)
    run = lambda *t: masked_conv2d(*t, **AT).sin()  # noqa: E731
    plain = torch.autograd.grad(run(*inputs).sum(), inputs)
    again = torch.autograd.grad(checkpoint(run, *inputs, use_reentrant=False).sum(), inputs)
    assert all(torch.equal(p, q) for p, q in zip(plain, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_but_the_inputs_and_two_integers_is_saved(dtype, generator):
    inputs = tensors(generator, dtype=dtype)
    assert sum(saved_bytes(lambda: masked_conv2d(*inputs, **AT), inputs)) == 16  # the seed and the draw


def test_frozen_tensors_get_no_gradient_computed(generator, monkeypatch):
    x, weight, logits, bias = tensors(generator, dtype=torch.float32)
    needs = recorded(monkeypatch, sp.backends.resolve(x, weight, logits), "weight_grad", "needs")
    masked_conv2d(x.detach(), weight.detach(), logits, bias, **AT).sum().backward()
    masked_conv2d(x, weight, logits.detach(), bias, **AT).sum().backward()
    masked_conv2d(x, weight.detach(), logits.detach(), bias, **AT).sum().backward()
    assert needs == [(False, True), (True, False)]


def test_double_backward_raises(generator):
    x, weight, logits, _ = tensors(generator)
    (g,) = torch.autograd.grad(masked_conv2d(x, weight, logits, **AT).square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        g.sum().backward()


def test_vmap_over_the_input(generator):
    x, weight, logits, bias = tensors(generator)
    batch = torch.stack([x, 2 * x, 3 * x])
    got = torch.vmap(lambda t: masked_conv2d(t, weight, logits, bias, **AT))(batch)
    torch.testing.assert_close(got, torch.stack([masked_conv2d(t, weight, logits, bias, **AT) for t in batch]))
    weights = torch.stack([weight, 2 * weight])
    got = torch.vmap(lambda w: masked_conv2d(x, w, logits, bias, **AT))(weights)
    torch.testing.assert_close(got, torch.stack([masked_conv2d(x, w, logits, bias, **AT) for w in weights]))


def test_per_example_gradients_by_torch_func(generator):
    x, weight, logits, bias = (t.detach() for t in tensors(generator))
    loss = lambda weight, logits, x: masked_conv2d(x, weight, logits, bias, **AT).sin().sum()  # noqa: E731
    got = torch.vmap(torch.func.grad(loss, (0, 1)), (None, None, 0))(weight, logits, x)
    for i, example in enumerate(x):
        inputs = [t.clone().requires_grad_() for t in (weight, logits)]
        for g, expected in zip(got, torch.autograd.grad(loss(*inputs, example), inputs), strict=True):
            torch.testing.assert_close(g[i], expected)


def test_autocast_computes_in_its_dtype_and_leaves_gradients_wide(generator):
    inputs = tensors(generator, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = masked_conv2d(*inputs, **AT)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), masked_conv2d(*inputs, **AT), rtol=0.05, atol=0.2)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.sum(), inputs))


def test_a_nan_logit_is_refused(generator):
    x, weight, logits, bias = (t.detach() for t in tensors(generator, dtype=torch.float32))
    logits[3, 1, 2, 0] = float("nan")
    with pytest.raises(ValueError, match=r"logits .*NaN"):
        masked_conv2d(x, weight, logits, bias, **AT)


ONES = {"x": torch.ones(5, 4, 7, 6), "weight": torch.ones(6, 2, 3, 3), "logits": torch.ones(6, 2, 3, 3), "groups": 2}


@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            {"x": torch.ones(5, 3, 7, 6)},
            ValueError,
            r"x \(5, 3, 7, 6\).* weight \(6, 2, 3, 3\).*2 groups",
        ),
        ({"x": torch.ones(7, 6)}, ValueError, r"x \(7, 6\) and weight"),
        ({"weight": torch.ones(6, 2, 3)}, ValueError, r"weight.*got shape \(6, 2, 3\)"),
        ({"logits": torch.ones(6, 2, 9)}, ValueError, r"logits \(6, 2, 9\) and weight \(6, 2, 3, 3\)"),
        ({"bias": torch.ones(5)}, ValueError, r"bias \(5,\).*\b6\b"),
        ({"x": torch.ones(5, 4, 7, 6, dtype=torch.int64)}, TypeError, "x.*got torch.int64"),
        ({"weight": torch.ones(6, 2, 3, 3).double()}, TypeError, r"x .*torch\.float32.* weight .*torch\.float64"),
        ({"weight": torch.ones(6, 2, 3, 3, device="meta")}, ValueError, "weight .*meta"),
        ({"groups": 4}, ValueError, r"weight \(6, 2, 3, 3\).*4 groups"),
        ({"stride": 0}, ValueError, "stride.*got 0"),
        ({"dilation": (1, 1, 1)}, ValueError, r"dilation.*got \(1, 1, 1\)"),
        ({"padding": -1}, ValueError, "padding.*got -1"),
        ({"padding": "full"}, ValueError, "padding.*got 'full'"),
        ({"padding": "same", "stride": 2}, ValueError, "'same'.*stride.*got 2"),
        ({"seed": -1}, ValueError, "seed.*got -1"),
        ({"draw": torch.arange(4)}, ValueError, r"x \(5, 4, 7, 6\).*\b4\b"),
        ({"draw": torch.arange(0)}, ValueError, r"draw.*shape \(0,\)"),
        ({"samples": 0}, ValueError, "samples.*got 0"),
        ({"estimator": "reinforce"}, ValueError, "masked_conv2d: .*estimator.*'reinforce'"),
        ({"temperature": 0.0}, ValueError, "temperature.*got 0.0"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        masked_conv2d(**{**ONES, **AT, **change})


@pytest.mark.parametrize("name", ["masked_conv2d", "masked_conv_transpose2d", "spike_and_slab_conv"])
def test_compiled_with_sizes_that_change(name, generator):
    run = getattr(functional, name)
    w = torch.randn(6, 6, 3, 3, generator=generator)
    weights = (w, w) if name.startswith("masked") else (w, w, w)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: run(x, *weights, **AT), backend="aot_eager", dynamic=True)
    for size in (5, 7):
        x = torch.randn(2, 6, size, size, generator=generator)
        torch.testing.assert_close(compiled(x), run(x, *weights, **AT))
    torch._dynamo.reset()
