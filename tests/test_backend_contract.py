"""What every backend keeps, written once: bits, values, gradients, odd shapes, empty, strided, poisoned memory."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stochprune import backends, reference, rng
from tests.cuda.emulation import emulation

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}  # relative, of the whole tensor
ESTIMATORS = ("straight_through", "concrete", "straight_through_concrete", "expected", "hard_concrete")
ON_GPU = ("triton", "cuda")
SHAPES = [(1, 1, 1), (3, 5, 63), (7, 37, 64), (2, 33, 130), (4, 16, 257)]  # M, N, K


def _native_variants() -> list[str]:
    if importlib.util.find_spec("stochprune._C") is None:
        return []
    from stochprune import _C

    return [f"native-{name}" for name in _C.instruction_sets()]


VARIANTS = ["reference", *_native_variants(), *(["triton"] if importlib.util.find_spec("triton") else []), "cuda"]


@pytest.fixture(params=VARIANTS)
def backend(request, monkeypatch):
    name, _, instruction_set = request.param.partition("-")
    if name == "cuda" and not torch.cuda.is_available():
        monkeypatch.setattr("stochprune._C.cuda", emulation(), raising=False)
    if not instruction_set:
        yield backends.load(name)
        return
    from stochprune import _C

    before = _C.instruction_set()
    _C.use_instruction_set(instruction_set)
    yield backends.load(name)
    _C.use_instruction_set(before)


@pytest.fixture
def device(backend) -> str:
    return "cuda" if backend.NAME in ON_GPU and torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fresh memory holds NaN, so that an element no kernel writes shows."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        allocate = getattr(owner, name)

        def fresh(*args, _allocate=allocate, **kwargs):
            out = _allocate(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        monkeypatch.setattr(owner, name, fresh)


def dtypes(backend) -> list[torch.dtype]:
    # bfloat16 products are wrong in Triton's interpreter.
    names = {
        "reference": (torch.float64, torch.float32),
        "native": (torch.float32, torch.bfloat16),
        "cuda": (torch.float32, torch.bfloat16),
    }
    return list(names.get(backend.NAME, (torch.float32,)))


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    scale = expected.double().norm().clamp_min(1e-30)
    return float((actual.double().cpu() - expected.double().cpu()).norm() / scale)


def key(seed: int, draw: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([rng.as_int64(seed)], device=device), torch.tensor([draw], device=device)


fixture_per_function = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fixture_per_function
@given(
    seed=st.integers(0, 2**64 - 1),
    draw=st.integers(0, 2**32 - 1),
    stream=st.integers(0, 2**31 - 1),
    row=st.one_of(st.integers(0, 300), st.integers(2**32 - 40, 2**32 - 20)),
    col=st.one_of(st.integers(0, 300), st.integers(2**34 - 400, 2**34 - 300)),
    rows=st.integers(1, 20),
    cols=st.integers(1, 200),
    transposed=st.booleans(),
)
def test_keep_mask_bits(backend, device, seed, draw, stream, row, col, rows, cols, transposed):
    threshold = (torch.arange(rows * cols) * 7919 % (rng.LEVELS + 1)).to(torch.int32).view(rows, cols)
    if transposed:
        threshold = threshold.T.contiguous().T
    threshold = threshold.to(torch.uint16)
    expected = reference.keep_mask(threshold, *key(seed, draw, "cpu"), stream, row, col)
    actual = backend.keep_mask(threshold.to(device), *key(seed, draw, device), stream, row, col)
    assert actual.dtype == torch.bool
    assert torch.equal(actual.cpu(), expected)


def test_keep_mask_keeps_all_and_none(backend, device):
    threshold = torch.tensor([[0], [rng.LEVELS]], dtype=torch.int32).expand(2, 500).to(torch.uint16)
    keep = backend.keep_mask(threshold.to(device), *key(1, 2, device), 3, 0, 0)
    assert keep.sum(1).tolist() == [0, 500]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_thresholds(backend, device, dtype, generator):
    if backend.NAME == "native" and dtype == torch.float16:
        pytest.skip("served by the reference")
    logits = (torch.randn(50, 33, generator=generator) * 6).to(dtype)
    logits[0, :4] = torch.tensor([float("inf"), float("-inf"), 0.0, -0.0])
    expected = rng.threshold_from_logits(logits).int()
    actual = backend.threshold_from_logits(logits.to(device)).cpu()
    assert actual.dtype == torch.uint16
    off = (actual.int() - expected).abs().max()
    assert off <= (1 if backend.NAME in ON_GPU else 0)  # a GPU forms them in float32


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(backend, device, estimator, shape, generator):
    m, n, k = shape
    draws = torch.tensor([5, 2**32 - 1, 6])
    seed = torch.tensor([rng.as_int64(2**63 + 11)])
    for dtype in dtypes(backend):
        make = lambda *s: torch.randn(*s, generator=generator).to(dtype)  # noqa: B023, E731
        x, w, logits, bias, grad = make(3, m, k), make(n, k), make(n, k), make(n), make(3, m, n)
        options = (seed, draws, 77, estimator, 0.7)
        exact = [t.double() for t in (x, w, logits, bias, grad)]
        y = reference.masked_linear(*exact[:4], *options)
        grads = reference.masked_linear_backward(exact[4], *exact[:3], *options, True, True, True)

        there = [t.to(device) for t in (x, w, logits, bias, grad)]
        options = (seed.to(device), draws.to(device), *options[2:])
        actual = backend.masked_linear(*there[:4], *options)
        assert actual.dtype == dtype
        assert error(actual, y) < TOLERANCE[dtype]
        actuals = backend.masked_linear_backward(there[4], *there[:3], *options, True, True, True)
        for got, expected, like in zip(actuals, grads, (x, w, logits), strict=True):
            assert got.dtype == like.dtype and got.shape == like.shape
            assert error(got, expected) < TOLERANCE[dtype]
        for needs in ((True, False, False), (False, True, False), (False, False, True)):
            some = backend.masked_linear_backward(there[4], *there[:3], *options, *needs)
            for got, whole, need in zip(some, actuals, needs, strict=True):
                assert (got is not None) == need
                assert got is None or error(got, whole.cpu()) < TOLERANCE[dtype]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("draws", [1, 2])
def test_the_divergence_is_added_to_the_gradient_of_the_logits(backend, device, estimator, draws, generator):
    at = (torch.tensor([5]), torch.arange(draws), 77, estimator, 0.7)
    there = (at[0].to(device), at[1].to(device), *at[2:])
    for dtype in dtypes(backend):
        shapes = ((draws, 6, 33), (draws, 6, 130), (33, 130), (33, 130), (33, 130))
        grad, x, w, logits, prior = (torch.randn(s, generator=generator).to(dtype) for s in shapes)
        logits[0, 0], logits[1, 1] = float("inf"), float("-inf")
        scale = torch.tensor(0.37, dtype=torch.float64)
        exact = [t.double() for t in (grad, x, w, logits)]
        expected = reference.masked_linear_backward(*exact, *at, True, True, True)
        pull, _ = reference.bernoulli_kl_backward(scale, exact[3], prior.double(), True, False)
        here = [t.to(device) for t in (grad, x, w, logits)]
        for needs in ((True, True, True), (False, False, True), (True, True, False)):
            grads = backend.masked_linear_backward(*here, *there, *needs, prior.to(device), scale.to(device))
            for got, value, add, need in zip(grads, expected, (0, 0, pull), needs, strict=True):
                assert (got is not None) == need
                if need:
                    assert error(got, value + add) < TOLERANCE[dtype]


def test_strided_inputs_give_the_bits_of_their_copies(backend, device, generator):
    x = torch.randn(2, 70, 6, generator=generator).to(device).transpose(1, 2)
    w = torch.randn(70, 9, generator=generator).to(device).T
    logits = torch.randn(9, 140, generator=generator).to(device)[:, ::2]
    grad = torch.randn(2, 6, 9, generator=generator).to(device)
    seed, _ = key(8, 0, device)
    options = (seed, torch.tensor([1, 2], device=device), 3, "straight_through", 1.0)
    copies = [t.contiguous() for t in (x, w, logits)]
    y = backend.masked_linear(x, w, logits, None, *options)
    assert error(y, backend.masked_linear(*copies, None, *options)) < 1e-6
    grads = backend.masked_linear_backward(grad, x, w, logits, *options, True, True, True)
    for got, expected in zip(
        grads, backend.masked_linear_backward(grad, *copies, *options, True, True, True), strict=True
    ):
        assert error(got, expected) < 1e-6


def test_one_input_shared_by_all_draws(backend, device, generator):
    x = torch.randn(1, 4, 70, generator=generator).to(device)
    w, logits = torch.randn(2, 9, 70, generator=generator).to(device)
    seed, _ = key(8, 0, device)
    options = (seed, torch.arange(3, device=device), 3, "straight_through", 1.0)
    shared = backend.masked_linear(x.expand(3, 4, 70), w, logits, None, *options)
    apart = backend.masked_linear(x.repeat(3, 1, 1), w, logits, None, *options)
    assert error(shared, apart) < 1e-6
    assert error(shared[0], apart[1]) > 1e-2


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_empty_dimensions(backend, device, shape):
    m, n, k = shape
    x, w, bias = torch.ones(1, m, k, device=device), torch.ones(n, k, device=device), torch.ones(n, device=device)
    options = (*key(0, 0, device), 1, "straight_through", 1.0)
    y = backend.masked_linear(x, w, torch.zeros_like(w), bias, *options)
    assert y.shape == (1, m, n) and (y == 1).all()
    dx, dw, dl = backend.masked_linear_backward(
        torch.ones_like(y), x, w, torch.zeros_like(w), *options, True, True, True
    )
    assert dx.shape == x.shape and (dx == 0).all()
    assert dw.shape == dl.shape == w.shape and (dw == 0).all() and (dl == 0).all()


def test_wide_weights_under_a_narrow_input(backend, device, generator):
    x = torch.randn(1, 8, 130, generator=generator).bfloat16().to(device)
    if backend.NAME == "triton" and device == "cpu":
        x = x.half()  # bfloat16 products are wrong in Triton's interpreter
    w, logits = torch.randn(2, 20, 130, generator=generator).to(device)
    grad = torch.randn(1, 8, 20, generator=generator).to(x)
    options = (*key(3, 4, "cpu"), 5, "straight_through", 1.0)
    here = [t.cpu().double() for t in (grad, x, w, logits)]
    y = reference.masked_linear(*here[1:], None, *options)
    grads = reference.masked_linear_backward(*here, *options, True, True, True)
    options = (*key(3, 4, device), *options[2:])
    assert error(backend.masked_linear(x, w, logits, None, *options), y) < 1e-2
    actual = backend.masked_linear_backward(grad, x, w, logits, *options, True, True, True)
    assert [t.dtype for t in actual] == [x.dtype, torch.float32, torch.float32]
    for got, expected in zip(actual, grads, strict=True):
        assert error(got, expected) < 1e-2


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape, gathered", [((9, 3, 3, 7), False), ((33, 130), True)], ids=str)
def test_masked_weights_and_their_gradients(backend, device, estimator, shape, gathered, generator):
    rows = torch.tensor([shape[0] - 1, 0, shape[0] // 2, 0]) if gathered else None
    at = (torch.tensor([rng.as_int64(2**63 + 11)]), torch.tensor([5, 2**32 - 1, 6]), 77, estimator, 0.7)
    there = (at[0].to(device), at[1].to(device), *at[2:])
    rows_there = None if rows is None else rows.to(device)
    for dtype in dtypes(backend):
        w, logits = (torch.randn(*shape, generator=generator).to(dtype) for _ in range(2))
        grad = torch.randn(3, len(w if rows is None else rows), *shape[1:], generator=generator).to(dtype)
        exact = [t.double() for t in (w, logits)]
        wl = (w.to(device), logits.to(device))
        z = reference.masked_weight(*exact, *at, torch.float64, rows)
        actual = backend.masked_weight(*wl, *there, dtype, rows=rows_there)
        assert actual.dtype == dtype and actual.shape == z.shape
        assert error(actual, z) < TOLERANCE[dtype]
        for draws in (1, 3):
            few, few_there = (at[0], at[1][:draws], *at[2:]), (there[0], there[1][:draws], *there[2:])
            grads = reference.weight_grad(grad[:draws].double(), *exact, *few, True, True, rows)
            for needs in ((True, True), (True, False), (False, True)):
                spent = grad[:draws].clone().to(device)  # which may be overwritten
                actuals = backend.weight_grad(spent, *wl, *few_there, *needs, rows=rows_there)
                for got, expected, need in zip(actuals, grads, needs, strict=True):
                    assert (got is not None) == need
                    if need:
                        assert got.dtype == dtype and got.shape == expected.shape
                        assert error(got, expected) < TOLERANCE[dtype]


def test_rows_of_a_masked_weight_are_those_of_the_whole(backend, device, generator):
    w, logits = torch.randn(2, 40, 70, generator=generator).to(device)
    rows = torch.tensor([39, 3, 3, 17], device=device)
    at = (*key(8, 4, device), 3, "straight_through", 1.0)
    some = backend.masked_weight(w, logits, *at, torch.float32, rows=rows).clone()
    assert torch.equal(some, backend.masked_weight(w, logits, *at, torch.float32)[:, rows])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_what_a_masked_weight_leaves_behind_changes_no_gradient(backend, device, estimator, generator):
    w, logits = torch.randn(2, 9, 5, 3, 3, generator=generator).to(device)
    grad = torch.randn(2, 9, 5, 3, 3, generator=generator).to(device)
    at = (key(8, 0, device)[0], torch.tensor([4, 6], device=device), 3, estimator, 0.5)
    memo = []
    masked = backend.masked_weight(w, logits, *at, torch.float32, memo=memo).clone()
    assert torch.equal(masked, backend.masked_weight(w, logits, *at, torch.float32))
    expected = backend.weight_grad(grad.clone(), w, logits, *at, True, True)
    for got, value in zip(
        backend.weight_grad(grad.clone(), w, logits, *at, True, True, memo=memo), expected, strict=True
    ):
        assert error(got, value) < 1e-6


def test_masked_weights_whatever_their_memory_format(backend, device, generator):
    w, logits = torch.randn(2, 6, 5, 3, 3, generator=generator).to(device)
    grad = torch.randn(1, 6, 5, 3, 3, generator=generator).to(device)
    other = [t.contiguous(memory_format=torch.channels_last) for t in (w, logits)]
    at = (*key(8, 4, device), 3, "concrete", 0.5)
    expected = backend.masked_weight(w, logits, *at, torch.float32).clone()
    assert torch.equal(backend.masked_weight(*other, *at, torch.float32), expected)
    strange = grad[0].contiguous(memory_format=torch.channels_last)[None]
    expected = backend.weight_grad(grad.clone(), w, logits, *at, True, True)
    for got, value in zip(backend.weight_grad(strange, *other, *at, True, True), expected, strict=True):
        assert error(got, value) < 1e-6


def test_masked_weights_of_wide_weights_for_a_narrow_product(backend, device, generator):
    narrow = torch.float16 if backend.NAME in ON_GPU else torch.bfloat16
    w, logits = torch.randn(2, 20, 130, generator=generator).to(device)
    grad = torch.randn(1, 20, 130, generator=generator).to(narrow).to(device)
    at = (*key(3, 4, device), 5, "straight_through", 1.0)
    masked = backend.masked_weight(w, logits, *at, narrow)
    assert masked.dtype == narrow
    here = (*key(3, 4, "cpu"), *at[2:])
    assert error(masked, reference.masked_weight(w.cpu(), logits.cpu(), *here, torch.float32)) < 1e-2
    expected = reference.weight_grad(grad.cpu().float(), w.cpu(), logits.cpu(), *here, True, True)
    for got, value in zip(backend.weight_grad(grad, w, logits, *at, True, True), expected, strict=True):
        assert got.dtype == torch.float32 and error(got, value) < 1e-5


@pytest.mark.parametrize("rows, cols, row", [(1, 1, 0), (5, 63, 7), (9, 257, 2**32 - 9)])
def test_normals_agree_to_1e_6_relative(backend, device, rows, cols, row):
    draws = torch.tensor([3, 2**32 - 1])
    seed, _ = key(2**64 - 5, 0, "cpu")
    actual = backend.normal(rows, cols, seed.to(device), draws.to(device), 2**31 - 1, row)
    assert actual.dtype == torch.float32 and actual.shape == (2, rows, cols)
    for got, draw in zip(actual.cpu().double(), draws, strict=True):
        exact = rng.normal(rows, cols, seed=seed, draw=draw, stream=2**31 - 1, row_offset=row)
        assert ((got - exact) / exact).abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(1, 1), (5, 63), (16, 257)], ids=str)
def test_gaussian_weights_and_their_gradient(backend, device, shape, generator):
    draws, (seed, _) = torch.tensor([3, 4]), key(9, 0, "cpu")
    for dtype in dtypes(backend):
        mu, rho = torch.randn(2, *shape, generator=generator).to(dtype)
        rho = 5 * rho - 5  # down to a deviation of 1e-6
        grad = torch.randn(2, *shape, generator=generator).to(dtype)
        there = [t.to(device) for t in (mu, rho, grad, seed, draws)]
        exact = reference.gaussian_weight(mu.double(), rho.double(), seed, draws, 5, torch.float64)
        actual = backend.gaussian_weight(*there[:2], *there[3:], 5, dtype)
        assert actual.dtype == dtype
        assert error(actual, exact) < TOLERANCE[dtype]
        small = backend.gaussian_weight(torch.zeros_like(there[0]), there[1] - 10, *there[3:], 5, dtype)
        exact = reference.gaussian_weight(torch.zeros(shape).double(), rho.double() - 10, seed, draws, 5, torch.float64)
        if dtype != torch.bfloat16:  # rho itself is rounded
            assert ((small.cpu() - exact) / exact).abs().max() < 4e-6
        exact = reference.gaussian_grad(grad.double(), rho.double(), seed, draws, 5)
        actual = backend.gaussian_grad(there[2], there[1], *there[3:], 5)
        assert actual.dtype == dtype
        assert error(actual, exact) < TOLERANCE[dtype]


def kl_by_formula(q, prior, mu, sigma, prior_mu, prior_sigma):
    """kl(q || p) and the Gaussians' divergence, summed in float64."""
    p, r, z = torch.sigmoid(prior), sigma / prior_sigma, (mu - prior_mu) / prior_sigma
    masks = torch.special.xlogy(q, q / p) + torch.special.xlogy(1 - q, (1 - q) / (1 - p))
    weights = (r * r + z * z - 1) / 2 - r.log()
    return masks.sum(), weights.sum(), (q * weights).sum()


@pytest.mark.parametrize("shape", [(1,), (63,), (3, 64), (5, 1777)], ids=str)
def test_divergences_and_their_gradients(backend, device, shape, generator):
    """Where thresholds are the reference's; the gradients for logits are those of the smooth function."""
    scale = torch.tensor(0.37, dtype=torch.float64)
    for dtype in dtypes(backend):
        logits, prior, mu, mu0, s, s0 = (torch.randn(shape, generator=generator).to(dtype) for _ in range(6))
        s, s0 = s.exp() + 0.1, s0.exp() + 0.1
        q = rng.threshold_from_logits(logits).int()
        logits[backend.threshold_from_logits(logits.to(device)).cpu().int() != q] = 0  # where a GPU's differ by 1
        q = rng.threshold_from_logits(logits).double() / rng.LEVELS
        there = [t.to(device) for t in (logits, prior, mu, s, mu0, s0)]
        exact = [t.double().requires_grad_() for t in (prior, mu, s, mu0, s0)]
        values = kl_by_formula(q, *exact)
        gaussian = there[2:]
        expected = [value.detach() for value in values]
        assert error(backend.bernoulli_kl(*there[:2]), expected[0]) < 1e-12
        assert error(backend.gaussian_kl(*gaussian, None), expected[1]) < 1e-12
        assert error(backend.gaussian_kl(*gaussian, there[0]), expected[2]) < 1e-12

        smooth = logits.double().requires_grad_()
        by_logits = kl_by_formula(torch.sigmoid(smooth), *(t.detach() for t in exact))
        grads = [*backend.bernoulli_kl_backward(scale.to(device), *there[:2], True, True)]
        grads += backend.gaussian_kl_backward(scale.to(device), *gaussian, there[0], [True] * 5)
        expected = [
            *torch.autograd.grad(by_logits[0], smooth, retain_graph=True),
            *torch.autograd.grad(values[0], exact[:1]),
            *torch.autograd.grad(values[2], exact[1:]),
            *torch.autograd.grad(by_logits[2], smooth),
        ]
        for got, want in zip(grads, expected, strict=True):
            assert got.dtype == dtype and got.shape == shape
            assert error(got, 0.37 * want) < TOLERANCE[dtype]


def test_divergences_of_nothing_and_of_bad_numbers(backend, device):
    one = torch.ones(3, device=device)
    none, nan = one[:0], torch.tensor([1.0, float("nan"), 1.0], device=device)
    assert backend.bernoulli_kl(none, none) == 0 and backend.gaussian_kl(none, none, none, none, none) == 0
    assert backend.bernoulli_kl(nan, one).isnan() and backend.bernoulli_kl(one, nan).isnan()
    for at in range(4):
        inputs = [one] * 4
        inputs[at] = nan
        assert backend.gaussian_kl(*inputs, None).isnan() and backend.gaussian_kl(*inputs, one).isnan()
    assert backend.gaussian_kl(one, one, one, one, nan).isnan()
    assert (
        backend.gaussian_kl(one, -one, one, -one, None).isnan()
        and backend.gaussian_kl(one, one, one, 0 * one, one).isnan()
    )
    assert backend.bernoulli_kl(one, one * float("inf")) == float("inf")


@pytest.mark.parametrize("n, m", [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8)])
def test_patterns_bits_and_gradients(backend, device, n, m, generator):
    at = (n, m, torch.tensor([rng.as_int64(2**63 + 11)]), torch.tensor([5, 2**32 - 1]), 77)
    there = (n, m, at[2].to(device), at[3].to(device), 77)
    for dtype in dtypes(backend):
        for cols, scale in ((m, 1), (136, 1), (64, 40)):  # within a group of 64, over its end
            w, logits = torch.randn(2, 9, cols, generator=generator).to(dtype)
            logits, grad = scale * logits, torch.randn(2, 9, cols, generator=generator).to(dtype)
            exact = reference.nm_masked_weight(w, logits, *at, dtype)
            actual = backend.nm_masked_weight(w.to(device), logits.to(device), *there, dtype).cpu()
            assert actual.dtype == dtype and torch.equal(actual, exact)
            grads = reference.nm_weight_grad(grad.double(), w.double(), logits.double(), *at, True, True)
            inputs = [t.to(device) for t in (grad, w, logits)]
            for needs in ((True, True), (True, False), (False, True)):
                actuals = backend.nm_weight_grad(*inputs, *there, *needs)
                for got, expected, need in zip(actuals, grads, needs, strict=True):
                    assert (got is not None) == need
                    assert not need or (got.dtype == dtype and error(got, expected) < 3 * TOLERANCE[dtype])


def test_patterns_with_infinite_logits(backend, device):
    inf = float("inf")
    logits = torch.tensor([[0.0, inf, -inf, inf], [-inf, -inf, -inf, 3.0], [inf, 1.0, -inf, -inf]], device=device)
    draws = torch.arange(50, device=device)
    seed, _ = key(1, 0, device)
    kept = backend.nm_masked_weight(torch.ones_like(logits), logits, 2, 4, seed, draws, 3, logits.dtype)
    assert (kept[:, 0] == torch.tensor([0, 1, 0, 1], device=device)).all()
    assert (kept[:, 1, 3] == 1).all() and (kept.sum(-1) == 2).all()
    assert (kept[:, 2] == torch.tensor([1, 1, 0, 0], device=device)).all()


@pytest.mark.parametrize("random", [("logits",), ("rho",), ("logits", "rho")], ids="+".join)
@pytest.mark.parametrize("shape", [(1, 1), (5, 63), (16, 257)], ids=str)
def test_moments_and_their_gradients(backend, device, random, shape, generator):
    for dtype in dtypes(backend):
        w, logits, rho, dmean, dvariance = (torch.randn(shape, generator=generator).to(dtype) for _ in range(5))
        given = {"logits": 5 * logits, "rho": 3 * rho - 3}
        inputs = [w, *(given[name] if name in random else None for name in given)]
        exact = [None if t is None else t.double().requires_grad_() for t in inputs]
        values = reference.moments(*exact, torch.float64)  # checked against the drawn masks elsewhere
        grads = torch.autograd.grad(
            values, [t for t in exact if t is not None], [dmean.double(), dvariance.double()]
        )  # by autograd, not by the reference's formulas
        there = [None if t is None else t.to(device) for t in inputs]
        for got, expected in zip(backend.moments(*there, dtype), values, strict=True):
            assert got.dtype == dtype and error(got.detach(), expected.detach()) < TOLERANCE[dtype]
        actuals = backend.moments_grad(dmean.to(device), dvariance.to(device), *there)
        assert [g is None for g in actuals] == [t is None for t in inputs]
        for got, expected in zip((g for g in actuals if g is not None), grads, strict=True):
            assert got.dtype == dtype and error(got, expected) < 2 * TOLERANCE[dtype]


OTHERS = {  # of weight, logits, rho and grad [N, K]
    "nm_masked_weight": lambda b, at, w, lo, r, g: [b.nm_masked_weight(w, lo, 2, 4, *at, w.dtype)],
    "nm_weight_grad": lambda b, at, w, lo, r, g: b.nm_weight_grad(g[None], w, lo, 2, 4, *at, True, True),
    "gaussian_weight": lambda b, at, w, lo, r, g: [b.gaussian_weight(w, r, *at, w.dtype)],
    "gaussian_grad": lambda b, at, w, lo, r, g: [b.gaussian_grad(g[None], r, *at)],
    "moments": lambda b, at, w, lo, r, g: b.moments(w, lo, r, w.dtype),
    "moments_grad": lambda b, at, w, lo, r, g: b.moments_grad(g, 2 * g, w, lo, r),
}


@pytest.mark.parametrize("op", OTHERS)
def test_other_ops_take_any_strides_and_nothing(backend, device, op, generator):
    at = (*key(8, 4, device), 3)
    strided = [torch.randn(72, 20, generator=generator).to(device).T[:, ::2] for _ in range(4)]  # [20, 36]
    results = OTHERS[op](backend, at, *strided)
    # Cloned: a result may lie in scratch memory that the next call uses.
    results = [t.clone() for t in results]
    for got, expected in zip(results, OTHERS[op](backend, at, *(t.contiguous() for t in strided)), strict=True):
        assert got.shape == expected.shape and error(got, expected) < 1e-6
    for shape in ((0, 8), (3, 0)):
        nothing = [torch.ones(shape, device=device)] * 4
        assert all(t.numel() == 0 and t.shape[-2:] == shape for t in OTHERS[op](backend, at, *nothing))
