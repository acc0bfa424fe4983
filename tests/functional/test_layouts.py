"""Every op on tensors that are strided, expanded, channels last or empty: as on dense copies, as torch's own ops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import stochprune as sp
from tests.functional.ops import AT, OPS

LAYOUTS = {
    "strided": lambda t: t.mT.contiguous().mT if t.dim() > 1 else torch.stack([t, t], -1)[..., 0],
    "every other": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    "expanded": lambda t: t[:1].expand_as(t),
    "expanded along a row": lambda t: t[..., :1].expand_as(t),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "with an offset": lambda t: torch.cat([t.new_full((1,), float("nan")), t.flatten()])[1:].view(t.shape),
}


def results(op, tensors: dict[str, Tensor]) -> list[Tensor]:
    tensors = {n: t.requires_grad_(not n.startswith("prior_")) for n, t in tensors.items()}
    out = op.run(**tensors)
    total = sum(y.double().square().sum() for y in out if y.requires_grad)
    trained = [t for t in tensors.values() if t.requires_grad]
    return [*out, *(torch.autograd.grad(total, trained) if isinstance(total, Tensor) else ())]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPS)
def test_strides_change_nothing(name, layout, generator):
    op = OPS[name]
    tensors = {n: LAYOUTS[layout](t.detach()) for n, t in op.make(generator).items()}
    dense = {n: t.clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    for got, want in zip(results(op, tensors), results(op, dense), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def empty(shape: tuple[int, ...]) -> Tensor:
    return torch.ones(shape, requires_grad=True)


@pytest.mark.parametrize("m, n, k", [(0, 6, 16), (2, 0, 16), (2, 6, 0), (0, 0, 0)])
@pytest.mark.parametrize(
    "name",
    [
        "masked_linear",
        "masked_linear_kl",
        "masked_linear_nm",
        "spike_and_slab_linear",
        "local_reparameterised_linear",
    ],
)
def test_empty_linear_layers_are_those_of_torch(name, m, n, k):
    x, bias = empty((m, k)), empty((n,))
    shapes = {argument: (n, k) for argument, shape in OPS[name].tensors.items() if shape == (6, 16)}
    weights = {argument: empty(shape).detach() for argument, shape in shapes.items()}
    y = OPS[name].run(x=x, **weights, bias=bias)[0]
    want = F.linear(x, torch.zeros(n, k), bias)
    assert y.shape == want.shape and (torch.equal(y, want) if not k else True)
    dx, dbias = torch.autograd.grad(y.sum(), (x, bias), materialize_grads=True, allow_unused=True)
    assert dx.shape == x.shape and torch.equal(dbias, torch.full((n,), float(m)))


def test_empty_batches_of_images():
    x, w = torch.ones(0, 4, 5, 5), torch.ones(6, 4, 3, 3)
    for op in (sp.functional.masked_conv2d, sp.functional.local_reparameterised_conv):
        assert op(x, w, w, **AT).shape == (0, 6, 3, 3)
    assert sp.functional.spike_and_slab_conv(x, w, w, w, **AT).shape == (0, 6, 3, 3)
    assert sp.functional.masked_conv_transpose2d(x, w[:4], w[:4], **AT).shape[:1] == (0,)
    assert sp.functional.masked_embedding(torch.zeros(0, 3, dtype=torch.int64), w[:, 0, 0], w[:, 0, 0], **AT).shape == (
        0,
        3,
        3,
    )


@pytest.mark.parametrize("op, w", [("masked_conv2d", (0, 4, 3, 3)), ("masked_conv2d", (6, 4, 0, 3))])
def test_convolutions_without_filters_are_refused(op, w):
    with pytest.raises(ValueError, match=rf"^{op}: .*weight"):
        getattr(sp.functional, op)(torch.ones(2, 4, 5, 5), torch.ones(w), torch.ones(w), **AT)


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("weights_last", [False, True])
@pytest.mark.parametrize("x_last", [False, True])
def test_convolutions_keep_the_memory_formats_that_compiled_graphs_expect(x_last, weights_last, draws, generator):
    shapes = (2, 4, 7, 6) if draws == 1 else (draws, 1, 4, 7, 6), (8, 4, 3, 3), (8, 4, 3, 3)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    x, weight, logits = (
        LAYOUTS["channels last"](t) if last else t
        for t, last in zip(tensors, (x_last, weights_last, weights_last), strict=True)
    )
    at = (torch.tensor([3]), torch.arange(draws), 7, "straight_through", 1.0, 0, 0, [1, 1, 1, 1, 1, 1, 0, 0, 0, 1])
    forward, backward = torch.ops.stochprune.masked_convolution, torch.ops.stochprune.masked_convolution_backward
    torch.library.opcheck(forward.default, (x, weight, logits, None, *at), test_utils="test_faketensor")
    grad = forward(x, weight, logits, None, *at)
    torch.library.opcheck(
        backward.default, (grad, x, weight, logits, *at, True, True, True), test_utils="test_faketensor"
    )
    for gradient, t in zip(backward(grad, x, weight, logits, *at, True, True, True), (x, weight, logits), strict=True):
        assert gradient.stride() == t.stride()
