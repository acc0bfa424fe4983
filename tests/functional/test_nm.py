"""N:M masks: the op against autograd of its definition, unbiasedness and KL against enumeration, errors."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch
import torch.nn.functional as F

from stochprune import patterns
from stochprune.functional import masked_linear_nm, nm_inclusion, nm_keep_mask, nm_kl
from tests.functional.definitions import AT, saved_bytes

OPS = torch.ops.stochprune
PATTERNS = ["2:4", "1:4", "4:8"]


def tensors(generator, m=4, n=6, k=72, dtype=torch.float64):
    return [torch.randn(*s, generator=generator, dtype=dtype).requires_grad_() for s in ((m, k), (n, k), (n, k), (n,))]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_equal_autograd_of_the_definition(pattern, dtype, generator):
    inputs = tensors(generator, dtype=dtype)
    x, weight, logits, bias = inputs
    hard = nm_keep_mask(logits, pattern=pattern, **AT)
    n, m = patterns.parse(pattern)
    assert (patterns.groups(hard, m).sum(-1) == n).all()
    mean = nm_inclusion(logits, pattern)
    expected = F.linear(x, (hard + mean - mean.detach()) * weight, bias)
    y = masked_linear_nm(*inputs, pattern=pattern, **AT)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(y, expected, **tolerance)
    loss = lambda out: (out.sin() * out).sum()  # noqa: E731
    for got, want in zip(
        torch.autograd.grad(loss(y), inputs), torch.autograd.grad(loss(expected), inputs), strict=True
    ):
        torch.testing.assert_close(got, want, **tolerance)


def expected_loss(loss, x, weight, logits, n):
    """E[loss] over all patterns of one row of weights, differentiable in weight and logits."""
    groups = patterns.groups(logits[0], 4)
    tables = [list(zip(patterns.kept(n, 4, logits), patterns.log_probabilities(g, n), strict=True)) for g in groups]
    total = torch.zeros((), dtype=weight.dtype)
    for chosen in itertools.product(*tables):
        mask = torch.cat([kept for kept, _ in chosen])
        total = total + sum(log_p for _, log_p in chosen).exp() * loss(F.linear(x, mask * weight))
    return total


def test_gradients_are_unbiased_for_a_linear_loss_and_the_weight_s_for_any(generator):
    x, weight, logits, _ = tensors(generator, m=3, n=1, k=8, dtype=torch.float32)
    draws = 4000
    for loss, logits_too in ((lambda y: y.sum(), True), (lambda y: (y - 1).square().sum(), False)):
        y = masked_linear_nm(x, weight, logits, pattern="2:4", seed=3, draw=0, stream=1, samples=draws)
        got = torch.autograd.grad(torch.vmap(loss)(y).sum() / draws, (weight, logits))
        want = torch.autograd.grad(expected_loss(loss, x, weight, logits, 2), (weight, logits))
        for mean, exact in list(zip(got, want, strict=True))[: 1 + logits_too]:
            assert (mean - exact).norm() / exact.norm() < 0.08


@pytest.mark.parametrize("pattern", PATTERNS)
def test_kl_equals_its_enumeration(pattern, generator):
    n, m = patterns.parse(pattern)
    logits, prior = 2 * torch.randn(2, 3, 2 * m, generator=generator, dtype=torch.float64)
    total = 0.0
    for own, against in zip(logits.view(-1, m), prior.view(-1, m), strict=True):
        weights = [math.exp(sum(against[list(kept)])) for kept in itertools.combinations(range(m), n)]
        for q, w in zip(patterns.probabilities(own, n).tolist(), weights, strict=True):
            total += q * math.log(q / (w / sum(weights))) if q else 0.0
    assert nm_kl(logits, prior, pattern).item() == pytest.approx(total, rel=1e-10)
    assert nm_kl(logits, 1.5, pattern) == nm_kl(logits, torch.zeros_like(logits), pattern)


def test_gradients_of_the_kl(generator):
    logits, prior = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)
    logits.requires_grad_(), prior.requires_grad_()

    def smooth(own, against):
        log_q, log_p = (patterns.log_probabilities(patterns.groups(t, 4), 2) for t in (own, against))
        return (log_q.exp() * (log_q - log_p)).sum()

    got = torch.autograd.grad(3 * nm_kl(logits, prior, "2:4"), (logits, prior))
    for actual, want in zip(got, torch.autograd.grad(3 * smooth(logits, prior), (logits, prior)), strict=True):
        torch.testing.assert_close(actual, want, rtol=0, atol=2e-3)  # the prior's takes the quantised q
    torch.testing.assert_close(got[0], torch.autograd.grad(3 * smooth(logits, prior), logits)[0])
    assert abs(nm_kl(logits, logits, "2:4")) < 1e-3


def test_kl_is_computed_in_chunks(generator, monkeypatch):
    logits, prior = torch.randn(2, 9, 40, generator=generator).requires_grad_()
    whole = nm_kl(logits, prior, "2:4")
    module = sys.modules["stochprune.functional.nm"]
    grad = torch.autograd.grad(whole, logits, retain_graph=True)[0]
    monkeypatch.setattr(module, "_GROUPS_AT_ONCE", 7)
    again = nm_kl(logits, prior, "2:4")
    torch.testing.assert_close(again, whole)
    torch.testing.assert_close(torch.autograd.grad(again, logits)[0], grad)


def test_draws_samples_and_vmap(generator):
    x, weight, logits, bias = tensors(generator)
    layer = lambda t, **o: masked_linear_nm(t, weight, logits, bias, pattern="2:4", **{**AT, **o})  # noqa: E731
    y = layer(x, samples=3)
    for s in range(3):
        assert torch.equal(y[s], layer(x, draw=11 + s))
    each = layer(x, draw=torch.arange(4))
    for i in range(4):
        torch.testing.assert_close(each[i], layer(x[i], draw=i))
    batch = torch.stack([x, 2 * x])
    torch.testing.assert_close(torch.vmap(layer)(batch), layer(batch))


def test_operators_pass_opcheck(generator):
    x, weight, logits, bias = tensors(generator, dtype=torch.float32)
    options = (torch.tensor([1]), torch.tensor([2]), 3, "straight_through", 1.0, 0, 0, 2, 4)
    torch.library.opcheck(OPS.masked_linear_nm.default, (x, weight, logits, bias, *options))
    detached = [t.detach() for t in (x, weight, logits)]
    torch.library.opcheck(
        OPS.masked_linear_nm_backward.default,
        (torch.ones(4, 6), *detached, *options, True, False, True),
    )
    torch.library.opcheck(OPS.nm_kl.default, (logits, weight.detach(), 2, 4))
    columns = logits.detach().mT.contiguous().mT  # as a transposed layer hands them over
    given = (torch.ones((), dtype=torch.float64), columns, weight.detach(), 2, 4)
    torch.library.opcheck(OPS.nm_kl_backward.default, given, test_utils="test_faketensor")


def test_nothing_weight_sized_is_saved(generator):
    inputs = tensors(generator, n=64, dtype=torch.float32)
    saved = saved_bytes(lambda: masked_linear_nm(*inputs, pattern="2:4", **AT), inputs)
    assert sum(saved) == 16  # the seed and the draw


ONES = {"x": torch.ones(5, 36), "weight": torch.ones(7, 36), "logits": torch.ones(7, 36), "pattern": "2:4"}


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"pattern": "2-4"}, ValueError, "n:m.*got '2-4'"),
        ({"pattern": "4:8"}, ValueError, r"\b8\b.*36 columns"),
        ({"pattern": "5:8"}, ValueError, "got 5:8"),
        ({"logits": torch.ones(7, 32)}, ValueError, r"logits \(7, 32\) and weight \(7, 36\)"),
        ({"logits": torch.full((7, 36), float("nan"))}, ValueError, "logits .*NaN"),
        ({"weight": torch.ones(7, 36, dtype=torch.int64)}, TypeError, "weight.*int64"),
        ({"draw": 2**32}, ValueError, "draw.*got 4294967296"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        masked_linear_nm(**{**ONES, **AT, **change})


def test_bad_input_of_the_closed_forms():
    with pytest.raises(ValueError, match="NaN"):
        nm_kl(torch.full((2, 4), float("nan")), 0.0, "2:4")
    with pytest.raises(ValueError, match=r"got shape \(4,\)"):
        nm_inclusion(torch.ones(4), "2:4")
    with pytest.raises(TypeError, match=r"logits.*int64"):
        nm_keep_mask(torch.ones(4, 4, dtype=torch.int64), pattern="2:4", **AT)
