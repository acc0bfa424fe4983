"""float32 on tiles: three products of bfloat16 parts, where torch's setting permits them."""

from __future__ import annotations

import math

import pytest
import torch

from stochprune import functional, reference

native = pytest.importorskip("stochprune.native")
from stochprune import _C  # noqa: E402
from stochprune.doctor.self_test import instructions  # noqa: E402
from stochprune.native import tiles  # noqa: E402
from tests.backends.cases import ALL, mask  # noqa: E402
from tests.native.test_tiles import EDGES, computed, expected, layer  # noqa: E402

pytestmark = pytest.mark.usefixtures("tile_unit", "any_precision")
WITHOUT_TILES = next(name for name in _C.instruction_sets() if name != "amx")
SETTINGS = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "highest": lambda: torch.set_float32_matmul_precision("highest"),
    "mkldnn.matmul tf32": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "tf32"),
    "mkldnn.matmul bf16": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "mkldnn.matmul ieee": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "ieee"),
    "all tf32": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "all ieee": lambda: setattr(torch.backends, "fp32_precision", "ieee"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_setting_decides(name, generator):
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    x, w, *_ = layer(generator, 1, 4, 3, 5, torch.float32)
    assert not tiles.take(x, w)  # torch's default
    SETTINGS[name]()
    assert tiles.take(x, w) == (name not in ("highest", "mkldnn.matmul ieee", "all ieee"))
    assert tiles.take(x.bfloat16(), w) and not tiles.take(x.double(), w)


def test_highest_changes_no_bit(generator):
    tensors, at = layer(generator, 2, 40, 70, 300, torch.float32), mask(8, [4, 5], 3, col=3)
    torch.set_float32_matmul_precision("highest")
    on_tiles = computed(*tensors, at)
    with instructions(WITHOUT_TILES):
        assert all(torch.equal(a, b) for a, b in zip(on_tiles, computed(*tensors, at), strict=True))


def _error_of_each(results, tensors, at) -> list[float]:
    """Return the largest errors of y, dx, dweight and dlogits, each divided by the sum of absolute products."""
    x, w, logits, bias, grad = tensors
    sums = expected(x.abs(), w.abs(), logits, bias.abs(), grad.abs(), at)
    pairs = zip(results, expected(*tensors, at), sums, strict=True)
    return [float(((got.double() - want).abs() / total.clamp_min(1e-30)).max()) for got, want, total in pairs]


@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_the_error_is_that_of_three_products(edge, generator):
    """A part is off by 2^-17 of its number, and the product of low parts, at most 2^-16, is left out: 2^-15 in all."""
    m, n, k, row, col = edge
    tensors, at = layer(generator, 1, m, n, k, torch.float32), mask(7, 3, 77, row=row, col=col)
    torch.set_float32_matmul_precision("high")
    errors = _error_of_each(computed(*tensors, at), tensors, at)
    for found, depth in zip(errors, (k, n, m, m), strict=True):
        rounded = (3 * math.ceil(depth / 32) + 20) * 2**-24  # of the sums: in a tile, and from tile to tile
        slope = 2**-20  # of the logits, in float32
        assert found < 2**-15 + rounded + slope


def test_the_error_lies_between_those_of_float32_and_of_one_product(generator):
    tensors, at = layer(generator, 1, 64, 130, 300, torch.float32), mask(7, 3, 77)
    errors = {}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        errors[precision] = _error_of_each(computed(*tensors, at), tensors, at)
    halves = [t.bfloat16().float() for t in tensors]  # their low parts are zero
    halves[2] = tensors[2]  # the logits, so that the masks are the same
    one = computed(*halves, at)
    for full, three, single in zip(errors["highest"], errors["high"], _error_of_each(one, tensors, at), strict=True):
        assert full < 2**-20 < three < 2**-15 < 2**-13 < single


def test_the_bound_of_one_product_is_reached_nearly(generator):
    """Sums of one product: what the parts leave out is not averaged."""
    x, w = (torch.rand(1, size, 1, generator=generator) + 1 for size in (1000, 1000))
    torch.set_float32_matmul_precision("high")
    y = native.masked_linear(x, w[0], torch.full((1000, 1), 99.0), None, mask=mask(1, 2, 3))
    exact = x.double() * w[0].double().T
    off = ((y.double() - exact).abs() / exact).max()
    assert 2**-16.5 < off < 2**-15


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(1.5), b.nan_to_num(1.5))


HUGE = {
    "inf": 0x7F800000,
    "-inf": 0xFF800000,
    "nan": 0x7FC00000,
    "nan of all ones": 0xFFFFFFFF,
    "the largest number": 0x7F7FFFFF,
    "the smallest that bfloat16 rounds to infinity": 0x7F7F8000,
}


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize(  # the results that depend on the operand, of y, dx, dweight and dlogits
    ("operand", "touched"), [(0, (0, 2, 3)), (1, (0, 1)), (4, (1, 2, 3))], ids=["x", "weight", "grad"]
)
@pytest.mark.parametrize("value", HUGE)
def test_what_is_not_finite_is_left_to_torch(value, operand, touched, draws, generator):
    """Parts would turn infinity times a number into NaN, and a huge number into infinity."""
    tensors, at = layer(generator, draws, 20, 40, 100, torch.float32), mask(8, list(range(draws)), 3)
    tensors[2].fill_(99.0)
    tensors[operand].view(torch.int32).view(-1)[-1] = HUGE[value] - (HUGE[value] >> 31 << 32)
    torch.set_float32_matmul_precision("high")
    results = computed(*tensors, at)
    with instructions(WITHOUT_TILES):
        plain = computed(*tensors, at)
    for i in touched:
        assert _same(results[i], plain[i])


def test_a_weight_that_is_not_finite_and_is_pruned_changes_nothing(generator):
    tensors, at = layer(generator, 1, 20, 40, 100, torch.float32), mask(8, 1, 3)
    torch.set_float32_matmul_precision("high")
    tensors[2][3, 7] = -99.0
    before = computed(*tensors, at)
    for value in (float("inf"), float("nan")):
        tensors[1][3, 7] = value
        y, dx, dw, _ = computed(*tensors, at)
        assert all(torch.equal(a, b) for a, b in zip((y, dx, dw), before, strict=False))


def test_denormal_numbers_count_as_zero(generator):
    x, w, logits, _, _ = layer(generator, 1, 20, 40, 100, torch.float32)
    torch.set_float32_matmul_precision("high")
    y = native.masked_linear(x * 2.0**-130, w, logits, None, mask=mask(8, 1, 3))
    assert y.abs().max() <= 2.0**-126 * w.abs().sum(1).max()


@pytest.mark.parametrize(("first", "then"), [("high", "highest"), ("highest", "high")])
def test_the_setting_may_change_between_forward_and_backward(first, then, generator):
    x, w, logits, bias, grad = layer(generator, 1, 20, 40, 100, torch.float32)
    x, grad, at = x[0], grad[0], mask(8, 1, 3)
    leaves = [t.requires_grad_() for t in (x, w, logits)]
    torch.set_float32_matmul_precision(first)
    y = functional.masked_linear(x, w, logits, bias, seed=8, draw=1, stream=3)
    torch.set_float32_matmul_precision(then)
    got = torch.autograd.grad(y, leaves, grad)
    want = native.masked_linear_backward(grad, *(t.detach() for t in leaves), mask=at, needs=ALL)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    keep = reference.keep_mask(native.threshold_from_logits(logits.detach()), mask=at)
    assert torch.equal(got[1] != 0, keep)


def test_nothing_more_is_saved_for_backward(generator):
    x, w, logits, bias, _ = layer(generator, 1, 20, 40, 100, torch.float32)
    saved = {}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        sizes = saved[precision] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t):
            functional.masked_linear(x[0], w.requires_grad_(), logits.requires_grad_(), bias, seed=8, draw=1, stream=3)
    assert saved["highest"] == saved["high"] and sum(saved["high"]) > 0


def test_autocast_still_computes_in_bfloat16(generator):
    x, w, logits, bias, _ = layer(generator, 1, 20, 40, 100, torch.float32)
    results = []
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(functional.masked_linear(x[0], w, logits, bias, seed=8, draw=1, stream=3))
    assert results[0].dtype is torch.bfloat16 and torch.equal(*results)
