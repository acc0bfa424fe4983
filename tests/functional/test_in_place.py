"""Every op returns a tensor of its own: changed in place it gives the gradients of the same change out of place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import stochprune as sp
from tests.functional.ops import OPS, VARIANTS, Op


def in_place(y: Tensor) -> Tensor:
    return F.relu(y.mul_(2).add_(0.25), inplace=True)


def out_of_place(y: Tensor) -> Tensor:
    return F.relu(y * 2 + 0.25)


def gradients(op: Op, change: Callable[[Tensor], Tensor], tensors: dict[str, Tensor]) -> tuple[list, list]:
    """The changed results, and the gradients of their sum for all arguments."""
    results = [change(y) for y in op.run(**tensors) if y.is_floating_point()]
    trained = [t for t in tensors.values() if t.requires_grad]
    total = sum(y.square().sum() for y in results if y.requires_grad)
    grads = torch.autograd.grad(total, trained, allow_unused=True) if isinstance(total, Tensor) else ()
    return results, [g for g in grads if g is not None]


def test_every_op_is_here():
    assert set(OPS) == set(sp.functional.__all__)


# Another backend gives results of the same shapes; several at once are made by Triton alone.
CASES = [*((name, "") for name in VARIANTS), *((name, "reference") for name in OPS), ("masked_weights", "triton")]


@pytest.mark.parametrize("name, backend", CASES)
def test_results_may_be_changed_in_place(name, backend, generator, monkeypatch):
    if backend == "triton":
        pytest.importorskip("triton")
    if backend:
        monkeypatch.setenv("STOCHPRUNE_BACKEND", backend)
    op = VARIANTS[name]
    tensors = op.make(generator)
    expected, wanted = gradients(op, out_of_place, tensors)
    results, grads = gradients(op, in_place, tensors)
    assert len(wanted) == len(grads)
    for got, want in zip((*results, *grads), (*expected, *wanted), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", VARIANTS)
def test_results_are_no_views_and_share_nothing_with_the_arguments(name, generator):
    """If the result were a view, a change in place would cost two copies of the gradient."""
    op = VARIANTS[name]
    tensors = op.make(generator)
    given = {t.untyped_storage().data_ptr() for t in (*tensors.values(), *op.options.values()) if isinstance(t, Tensor)}
    for result in op.run(**tensors):
        assert not result._is_view()
        assert result.untyped_storage().data_ptr() not in given
        before = [t.detach().clone() for t in tensors.values()]
        with torch.no_grad():
            result.zero_()
        assert all(torch.equal(t, old) for t, old in zip(tensors.values(), before, strict=True))


COMPILED = {
    "masked_linear",
    "masked_linear_blocks",
    "masked_linear_nm",
    "masked_conv2d",
    "masked_conv2d samples=3",
    "masked_conv_transpose1d",
    "masked_embedding",
    "spike_and_slab_conv",
    "local_reparameterised_conv",
}


@pytest.mark.parametrize("name", sorted(COMPILED))
def test_compiled_results_may_be_changed_in_place(name, generator):
    op = VARIANTS[name]
    tensors = op.make(generator)

    def step(**given: Tensor) -> Tensor:
        return in_place(op.run(**given)[0])

    expected, wanted = gradients(op, out_of_place, tensors)
    torch._dynamo.reset()  # the limit of recompilations is that of the one function above
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got = gradients(op._replace(call=compiled, options={}), lambda y: y, tensors)
    for a, b in zip((*got[0], *got[1]), (*expected, *wanted), strict=True):
        torch.testing.assert_close(a, b)
