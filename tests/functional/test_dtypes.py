"""Every op in every mixture of dtypes: the values of float64 up to rounding, or a TypeError that names both dtypes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import stochprune as sp
from stochprune.functional._checks import FROZEN, READS_FROZEN
from tests.functional.ops import OPS, Op

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 1e-5, torch.float64: 1e-5}  # of the whole tensor


def group(name: str) -> int:
    """Which arguments share a dtype: the input's, the logits', the weights'."""
    return 0 if name in ("x", "bias") else 2 if name.startswith("logits") else 1


def run(op: Op, tensors: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The results, and the gradients of the sum of their squares by argument."""
    tensors = {name: t.detach().requires_grad_(t.requires_grad) for name, t in tensors.items()}
    results = op.run(**tensors)
    total = sum(y.double().square().sum() for y in results if y.requires_grad)
    if isinstance(total, Tensor):
        total.backward()
    return [y.detach() for y in results], {n: t.grad for n, t in tensors.items() if t.grad is not None}


def check(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    if got.is_floating_point():
        assert (got.double() - want.double()).norm() <= tolerance * want.double().norm() + 1e-12
    else:
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", OPS)
def test_right_in_every_mixture_of_dtypes_or_refused(name, generator, monkeypatch):
    op = OPS[name]
    exact = op.make(generator, torch.float64)
    groups = sorted({group(argument) for argument in op.tensors})
    for mixture in itertools.product(DTYPES, repeat=len(groups)):
        dtypes = dict(zip(groups, mixture, strict=True))
        tensors = {n: t.detach().to(dtypes[group(n)]).requires_grad_(t.requires_grad) for n, t in exact.items()}
        try:
            results, grads = run(op, tensors)
        except TypeError as error:
            assert "float64" in str(error) and str(error).startswith(name)  # x narrower than a float64 weight
            assert dtypes[0] != torch.float64 and dtypes[1] == torch.float64
            continue
        monkeypatch.setenv("STOCHPRUNE_BACKEND", "reference")
        expected, wanted = run(op, {n: t.detach().double().requires_grad_(t.requires_grad) for n, t in tensors.items()})
        monkeypatch.delenv("STOCHPRUNE_BACKEND")
        tolerance = max(TOLERANCE[dtype] for dtype in mixture) if mixture else 0.0
        for got, want in zip(results, expected, strict=True):
            check(got, want, tolerance)
        assert set(grads) == set(wanted)
        for argument, want in wanted.items():
            assert grads[argument].dtype == tensors[argument].dtype
            check(grads[argument], want, 4 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", DTYPES)
def test_masked_weights_in_every_dtype(dtype, weight, generator):
    op = OPS["masked_weights"]
    op = op._replace(options={**op.options, "dtype": dtype})
    tensors = op.make(generator, weight)
    results, grads = run(op, tensors)
    exact = op._replace(options={**op.options, "dtype": torch.float64})
    expected, wanted = run(exact, {n: t.detach().double().requires_grad_() for n, t in tensors.items()})
    tolerance = max(TOLERANCE[dtype], TOLERANCE[weight])
    for got, want in zip(results, expected, strict=True):
        assert got.dtype == dtype
        check(got, want, tolerance)
    for argument, want in wanted.items():
        check(grads[argument], want, 4 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fused_masking_under_autocast_gives_the_layers_values(dtype, generator):
    skip = nn.utils.skip_init
    model = nn.Sequential(skip(nn.Conv2d, 2, 4, 3), nn.ReLU(), nn.Flatten(), skip(nn.Linear, 64, 5))
    for parameter in model.parameters():
        parameter.detach().copy_(torch.randn(parameter.shape, generator=generator) / 4)
    sp.convert(model, keep_kept=0.7)
    x = torch.randn(3, 2, 6, 6, generator=generator)
    draws = [layer.mask_draw.clone() for layer in sp.nn.masked_layers(model).values()]
    apart = model(x)
    for layer, draw in zip(sp.nn.masked_layers(model).values(), draws, strict=True):
        layer.mask_draw.copy_(draw)
    with torch.autocast("cpu", dtype), sp.nn.fused_masking(model):
        together = model(x)
    assert together.dtype == dtype
    check(together, apart, TOLERANCE[dtype] * 2)


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if "x" in op.tensors])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_under_autocast(name, dtype, generator):
    tensors = OPS[name].make(generator)
    with torch.autocast("cpu", dtype):
        got = OPS[name].run(**tensors)[0]
    assert got.dtype == dtype
    check(got.detach(), OPS[name].run(**tensors)[0].detach(), TOLERANCE[dtype] * 2)


REFUSED = [
    (name, argument, dtype)
    for name, op in OPS.items()
    for argument in op.tensors
    for dtype in (torch.int64, torch.bool, torch.complex64, FROZEN)
    if not (dtype == FROZEN and name in READS_FROZEN and argument in ("weight", "a", "b"))  # see test_float8.py
]


@pytest.mark.parametrize("name, argument, dtype", REFUSED)
def test_other_dtypes_are_refused(name, argument, dtype, generator):
    tensors = {n: t.detach() for n, t in OPS[name].make(generator).items()}
    tensors[argument] = torch.ones(tensors[argument].shape).to(dtype)
    with pytest.raises(TypeError, match=rf"^{name}: .*{str(dtype).removeprefix('torch.')}"):
        OPS[name].run(**tensors)
