"""One NaN in one argument of an op: refused, or in the same results and gradients on every CPU backend."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from tests.functional.ops import OPS, Op

CPU = ["reference"]
if importlib.util.find_spec("stochprune._C"):
    from stochprune import _C

    CPU += _C.instruction_sets()


@pytest.fixture
def on_each(monkeypatch):
    """Runs a function on every CPU backend."""

    def run(function):
        found = []
        for name in CPU:
            if name != "reference":
                _C.use_instruction_set(name)
            monkeypatch.setenv("STOCHPRUNE_BACKEND", "reference" if name == "reference" else "native")
            found.append(function())
        return found

    before = _C.instruction_set() if len(CPU) > 1 else ""
    yield run
    if before:
        _C.use_instruction_set(before)


def nans(op: Op, tensors: dict[str, Tensor]) -> list[Tensor] | str:
    """Return where results and gradients are NaN, or the refusal."""
    tensors = {n: t.detach().clone().requires_grad_(t.requires_grad) for n, t in tensors.items()}
    try:
        results = op.run(**tensors)
    except ValueError as error:
        return str(error)
    total = sum(y.double().square().sum() for y in results if y.requires_grad)
    grads = [t for t in tensors.values() if t.requires_grad]
    found = torch.autograd.grad(total, grads, allow_unused=True) if isinstance(total, Tensor) else ()
    return [t.detach().isnan() for t in (*results, *found) if t is not None]


@pytest.mark.parametrize("name, argument", [(name, argument) for name, op in OPS.items() for argument in op.tensors])
@pytest.mark.parametrize("place", [0, -1])
def test_one_nan_is_refused_or_gives_the_same_nans_on_every_backend(name, argument, place, on_each, generator):
    op = OPS[name]
    tensors = {n: t.detach().requires_grad_(t.requires_grad) for n, t in op.make(generator).items()}
    tensors[argument].data.view(-1)[place] = float("nan")
    reference, *others = on_each(lambda: nans(op, tensors))
    if isinstance(reference, str):
        assert "NaN" in reference and reference.startswith(name)
    for other in others:
        if isinstance(reference, str):
            assert other == reference
        else:
            assert not isinstance(other, str)
            assert all(torch.equal(a, b) for a, b in zip(other, reference, strict=True))
    if argument in ("rho", "x", "bias"):  # of which a hard mask prunes nothing
        assert any(t.any() for t in reference)
