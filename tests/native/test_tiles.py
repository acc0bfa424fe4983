"""Linear layers on tiles, in software where there is no AMX, beyond the contract of every backend.

In bfloat16, and in float32 where torch's setting permits three products of bfloat16 instead of one.
"""

from __future__ import annotations

import pytest
import torch

from stochprune import reference, rng
from stochprune.address import KLTerm

native = pytest.importorskip("stochprune.native")
from stochprune import _C  # noqa: E402
from stochprune.doctor.self_test import instructions  # noqa: E402
from stochprune.native import tiles  # noqa: E402
from stochprune.native.masked import masked  # noqa: E402
from tests.backends.cases import ALL, ESTIMATORS, error, mask  # noqa: E402

pytestmark = pytest.mark.usefixtures("tile_unit", "high_precision")
LIMITS = {
    torch.bfloat16: 4e-3,  # relative error of a number that is rounded twice: a soft masked weight, and the result
    torch.float32: 1e-5,  # three products of parts; see test_tile_parts
}
# M, N, K, row and column offset: whole blocks, one more or less, several blocks along every sum
EDGES = [
    (1, 1, 1, 0, 0),
    (16, 32, 256, 0, 0),
    (31, 33, 257, 0, 0),
    (33, 31, 255, 5, 0),
    (5, 129, 64, 0, 63),
    (2, 260, 140, 9, 127),
    (40, 65, 530, 2**32 - 65, 1),
    (3, 515, 516, 0, 5),  # so large that new gradients are stored past the caches
]


@pytest.fixture(params=LIMITS, ids=str)
def dtype(request):
    return request.param


def layer(generator, draws, m, n, k, dtype=torch.bfloat16, weight=None, logits=torch.float32):
    make = lambda *size: torch.randn(*size, generator=generator).to(dtype)  # noqa: E731
    sizes = (draws, m, k), (n, k), (n, k), (n,), (draws, m, n)
    x, w, logit, bias, grad = (make(*size) for size in sizes)
    return x, w.to(weight or dtype), logit.to(logits), bias, grad


def expected(x, w, logits, bias, grad, at, kl=None):
    exact = [t.double() for t in (x, w, logits, bias)]
    y = reference.masked_linear(*exact, mask=at)
    return (y, *reference.masked_linear_backward(grad.double(), *exact[:3], mask=at, needs=ALL, kl=kl))


def computed(x, w, logits, bias, grad, at, kl=None):
    y = native.masked_linear(x, w, logits, bias, mask=at)
    return (y, *native.masked_linear_backward(grad, x, w, logits, mask=at, needs=ALL, kl=kl))


def test_the_route_is_taken(dtype, generator):
    x, w, *_ = layer(generator, 1, 4, 3, 5, dtype)
    assert tiles.take(x, w) and tiles.take(x[0], w)
    assert not tiles.take(x[:, :0], w)
    assert _C.has_tiles()
    with instructions("scalar"):
        assert not _C.has_tiles()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_edges(edge, estimator, dtype, generator):
    m, n, k, row, col = edge
    tensors = layer(generator, 1, m, n, k, dtype)
    at = mask(2**64 - 3, 2**32 - 1, 77, estimator, 0.7, row=row, col=col)
    for got, want in zip(computed(*tensors, at), expected(*tensors, at), strict=True):
        assert got.shape == want.shape and error(got, want) < LIMITS[dtype]


@pytest.mark.parametrize("col", [0, 1, 63, 64, 130])
def test_the_masks_are_the_contracts(col, dtype, generator):
    """The columns of x are those of the identity, so that y and dx are the masked weight."""
    n, k = 70, 300
    at = mask(11, [2, 2**32 - 1], 5, row=3, col=col)
    w = torch.rand(n, k, generator=generator).add(1).bfloat16().to(dtype)  # so that no product is rounded
    logits = torch.randn(n, k, generator=generator) * 4
    for i in range(2):
        keep = reference.keep_mask(rng.threshold_from_logits(logits), mask=at.one(i))
        want = w * keep
        x = torch.eye(k, dtype=dtype)[None]
        assert torch.equal(native.masked_linear(x, w, logits, None, mask=at.one(i))[0], want.T)
        grad = torch.eye(n, dtype=dtype)[None]
        dx, _, _ = native.masked_linear_backward(grad, x[:, :n], w, logits, mask=at.one(i), needs=ALL)
        assert torch.equal(dx[0], want)
    ones = torch.ones(2, 1, k, dtype=dtype), torch.ones(2, 1, n, dtype=dtype)
    counts = sum(reference.keep_mask(rng.threshold_from_logits(logits), mask=at.one(i)).int() for i in range(2))
    for needs in (ALL, (False, True, True)):  # with the bits of dx's pass, and without
        _, dw, _ = native.masked_linear_backward(ones[1], ones[0], w, logits, mask=at, needs=needs)
        assert torch.equal(dw.int(), counts)


@pytest.mark.parametrize("weight", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("logits", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("draws", [1, 3])
def test_dtypes_and_draws(weight, logits, draws, dtype, generator):
    tensors = layer(generator, draws, 18, 70, 200, dtype, weight, logits)
    at = mask(8, list(range(draws)), 3, col=64)
    prior = torch.randn(70, 200, generator=generator).to(logits)
    kl = KLTerm(prior, torch.tensor(0.3, dtype=torch.float64))
    want = expected(*tensors, at, KLTerm(prior.double(), kl.grad))
    results = computed(*tensors, at, kl)
    assert [t.dtype for t in results] == [dtype, dtype, weight, logits]
    for got, exact in zip(results, want, strict=True):
        assert error(got, exact) < 2 * LIMITS[got.dtype]  # a gradient in bfloat16 is rounded once for each draw


def test_many_draws_pass_in_parts(dtype, generator):
    """More sums than a thread may hold, so that the draws are divided; gradients are summed over the parts."""
    tensors = layer(generator, 11, 130, 40, 70, dtype)
    at = mask(8, list(range(11)), 3)
    assert 11 * 130 * 128 * 4 > 512 << 10
    for got, exact in zip(computed(*tensors, at), expected(*tensors, at), strict=True):
        assert error(got, exact) < 4 * LIMITS[got.dtype]


def test_panels_of_blocks(dtype, generator):
    """More activations than stay in the cache, so that several blocks accumulate at a time."""
    m, n, k = 160, 70, 3400
    assert m * k * 2 > 1 << 20
    x, w, logits, bias, _ = layer(generator, 1, m, n, k, dtype)
    at = mask(8, 1, 3)
    y = reference.masked_linear(x.double(), w.double(), logits.double(), bias.double(), mask=at)
    assert error(native.masked_linear(x, w, logits, bias, mask=at), y) < LIMITS[dtype]
    turned = [t.mT.contiguous() for t in (w, logits)]  # the same for the sum of dx
    dx, *_ = native.masked_linear_backward(x, x[..., :n].contiguous(), *turned, mask=at, needs=(True, False, False))
    want = reference.masked_linear_backward(
        x.double(), x[..., :n].double(), *(t.double() for t in turned), mask=at, needs=(True, False, False)
    )
    assert error(dx, want[0]) < LIMITS[dtype]


@pytest.mark.parametrize("draws", [1, 2])
def test_cached_thresholds_change_no_bit(draws, dtype, generator):
    tensors, at = layer(generator, draws, 9, 70, 200, dtype), mask(8, list(range(draws)), 3, col=5)
    without = computed(*tensors, at)
    native.cache.enabled = True
    try:
        for a, b in zip(without, computed(*tensors, at), strict=True):
            assert torch.equal(a, b)
    finally:
        native.cache.enabled = False
        native.cache.clear()


def test_threads_change_no_bit(dtype, generator):
    tensors, at = layer(generator, 2, 40, 200, 300, dtype), mask(8, [4, 5], 3, col=3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(computed(*tensors, at))
    finally:
        torch.set_num_threads(before)
    for one, *others in zip(*results, strict=True):
        assert all(torch.equal(one, other) for other in others)


def test_draws_together_are_the_draws_alone(dtype, generator):
    x, w, logits, bias, grad = layer(generator, 3, 20, 70, 130, dtype)
    at = mask(8, [7, 1, 7], 3)
    y = native.masked_linear(x, w, logits, bias, mask=at)
    dx, *_ = native.masked_linear_backward(grad, x, w, logits, mask=at, needs=ALL)
    for i in range(3):
        alone = computed(x[i], w, logits, bias, grad[i], at.one(i))
        assert torch.equal(y[i], alone[0]) and torch.equal(dx[i], alone[1])


def test_a_masked_infinity_does_not_reach_the_result(dtype, generator):
    x, w, _, bias, grad = layer(generator, 1, 4, 40, 100, dtype)
    w[3, 7] = float("inf")
    logits = torch.full((40, 100), float("-inf"))
    y, dx, _, _ = computed(x, w, logits, bias, grad, mask(8, 1, 3, "hard_concrete"))
    assert torch.isfinite(dx).all() or y.isnan().any()  # a soft mask multiplies: zero times infinity is NaN
    y, dx, dw, _ = computed(x, w, logits, bias, grad, mask(8, 1, 3))
    keep = reference.keep_mask(rng.threshold_from_logits(logits), mask=mask(8, 1, 3))
    assert not keep[3, 7]
    assert torch.isfinite(y).all() and torch.isfinite(dx).all() and torch.isfinite(dw).all()


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("at", [(0, 0), (39, 99), (35, 70)])
def test_nan_logits_are_refused(at, draws, dtype, generator):
    x, w, logits, bias, grad = layer(generator, draws, 4, 40, 100, dtype)
    logits[at] = float("nan")
    address = mask(8, list(range(draws)), 3)
    with pytest.raises(ValueError, match="NaN"):
        native.masked_linear(x, w, logits, bias, mask=address)
    with pytest.raises(ValueError, match="NaN"):
        native.masked_linear_backward(grad, x, w, logits, mask=address, needs=ALL)


def test_memory_is_small_beside_the_weight(dtype):
    """No masked weight: scratch memory grows with the activations, not with the layer."""
    at, w = mask(1, 2, 3), torch.zeros(4096, 4096, dtype=dtype)
    held = _C.tile_bytes(masked(w, w, at), w[:16], 2)
    assert held < 5 << 20 < w.nbytes // 4


def test_the_sum_is_that_of_the_instruction():
    """Products in float32, even and odd elements apart; a denormal is zero, which torch's float32 keeps."""
    if "amx" in _C.instruction_sets():
        pytest.skip("the processor itself decides")
    at, logits = mask(1, 2, 3), torch.full((1, 32), 99.0)
    w = torch.ones(1, 32).bfloat16()
    keep = reference.keep_mask(rng.threshold_from_logits(logits), mask=at)
    assert keep.all()
    x = torch.zeros(1, 1, 32).bfloat16()
    x[0, 0, 0], x[0, 0, 1], x[0, 0, 2] = 2.0**60, 1.0, -(2.0**60)  # the even elements cancel, the odd one remains
    assert native.masked_linear(x, w, logits, None, mask=at).item() == 1.0
    x[0, 0, 1], x[0, 0, 3] = 0.0, 1.0
    x[0, 0, 4] = 1.0  # among the even elements, lost beside 2^60 if it came before -2^60
    assert native.masked_linear(x, w, logits, None, mask=at).item() == 2.0
    x.zero_()
    x[0, 0, 0] = 2.0**-130
    assert native.masked_linear(x, w, logits, None, mask=at).item() == 0.0
