"""The checks of contenders see what is wrong: each way to be wrong is tried."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stochprune import patterns
from stochprune.bench import laws
from stochprune.bench.case import Case
from stochprune.bench.ops import linear_nm_ways, linear_ways
from stochprune.bench.ops.linear import ROUTES, Linear
from stochprune.bench.ops.linear_nm import LinearNM

CPU = torch.device("cpu")
CASE = Case("ops", "linear", {"rows": 24, "cols": 40, "tokens": 6})
WAYS = [name for name in Linear.laws if name not in ("compile", "ours, without AMX", *ROUTES)]


@pytest.mark.parametrize("contender", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["joint", "mask-only"])
def test_every_way_is_right(contender, dtype, mode):
    case = Case("ops", "linear", CASE.shape, dtype, mode)
    with torch.random.fork_rng():
        verdict = Linear().check(contender, case, CPU)
    assert verdict.wrong is None
    assert verdict.bits_equal is (True if contender.startswith("ours") else None)


def masked(change):
    """A layer in plain PyTorch; ``change`` maps mask, probabilities and weight to what multiplies x."""

    def make(weight, logits, bias):
        numbers = torch.Generator().manual_seed(0)

        def forward(x):
            q = torch.sigmoid(logits)
            mask = (torch.rand(q.shape, generator=numbers) < q).to(q.dtype)
            return F.linear(x, change(mask, q, weight), bias)

        return forward

    return make


def through(mask, q):
    return mask - q.detach() + q


WRONG = {
    "mean weights": (masked(lambda m, q, w: w * q), "weights"),
    "too few": (masked(lambda m, q, w: w * through(m * (q > 0.4), q)), "keeps"),
    "without logits": (masked(lambda m, q, w: w * through(m.roll(1, 0), q)), "keeps"),
    "scaled": (masked(lambda m, q, w: w * through(m, q) * 1.01), "weights"),
    "no gradient of the logits' slope": (masked(lambda m, q, w: w * (through(m, q) + q - q.detach())), "logits"),
    "weight's gradient without the mask": (
        masked(lambda m, q, w: (w - w.detach()) + w.detach() * through(m, q)),
        "weight",
    ),
}


def test_one_uniform_for_a_whole_column_is_seen(monkeypatch):
    def make(weight, logits, bias):
        numbers = torch.Generator().manual_seed(0)

        def forward(x):
            q = torch.sigmoid(logits)
            mask = (torch.rand(1, q.shape[1], generator=numbers) < q).to(q.dtype)
            return F.linear(x, weight * through(mask, q), bias)

        return forward

    monkeypatch.setitem(linear_ways.CONTENDERS, "eager", make)
    assert "depend" in str(Linear().check("eager", CASE, CPU).wrong)


@pytest.mark.parametrize("factor", [lambda b: 3 * b, lambda b: b.detach()])
def test_a_wrong_bias_is_seen(monkeypatch, factor):
    right = linear_ways.eager
    wrong = lambda w, logits, b: lambda x: right(w, logits, factor(b) + 0 * b)(x)  # noqa: E731
    monkeypatch.setitem(linear_ways.CONTENDERS, "eager", wrong)
    with torch.random.fork_rng():
        assert "bias" in str(Linear().check("eager", CASE, CPU).wrong)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_way_is_seen(monkeypatch, name):
    make, what = WRONG[name]
    monkeypatch.setitem(linear_ways.CONTENDERS, "eager", make)
    assert what in str(Linear().check("eager", CASE, CPU).wrong)


def test_one_mask_for_all_passes_is_seen(monkeypatch):
    def make(weight, logits, bias):
        mask = torch.bernoulli(torch.sigmoid(logits.detach()), generator=torch.Generator().manual_seed(0))
        return lambda x: F.linear(x, weight * through(mask, torch.sigmoid(logits)), bias)

    monkeypatch.setitem(linear_ways.CONTENDERS, "eager", make)
    assert "same mask" in str(Linear().check("eager", CASE, CPU).wrong)


def test_another_stream_than_the_contract_s_is_seen(monkeypatch):
    monkeypatch.setattr("stochprune.bench.ops.linear_ways.STREAM", 3)
    verdict = Linear().check("ours", CASE, CPU)
    assert verdict.wrong is not None and verdict.bits_equal is False


def nm(monkeypatch, contender, way, dtype="float32"):
    monkeypatch.setitem(linear_nm_ways.CONTENDERS, contender, way)
    with torch.random.fork_rng():
        return LinearNM().check(contender, Case("ops", "linear_nm", {**CASE.shape, "n": 2, "m": 4}, dtype), CPU).wrong


def unheeding(n, m):
    """A layer whose masks ignore their logits; its gradients do not."""

    def make(weight, logits, bias):
        def forward(x):
            chosen = torch.rand(patterns.groups(logits, m).shape).topk(n).indices
            mask = torch.zeros(weight.shape).unflatten(1, (-1, m)).scatter(-1, chosen, 1).flatten(1)
            q = patterns.inclusion(logits, n, m)
            return F.linear(x, weight * through(mask, q), bias)

        return forward

    return make


@pytest.mark.parametrize(
    ("contender", "way", "what"),
    [
        ("eager", linear_nm_ways.maskpro, "gradient of logits"),
        ("MaskPro", linear_nm_ways.eager, "gradient of logits"),
        ("eager", unheeding, "means"),
        ("dense", linear_nm_ways.eager, "output"),
    ],
)
def test_another_law_of_patterns_is_seen(monkeypatch, contender, way, what):
    assert what in str(nm(monkeypatch, contender, way))


@pytest.mark.parametrize(("kept", "what"), [(2, "None"), (3, "more than 2")])
def test_largest_weights_of_groups(monkeypatch, kept, what):
    def make(weight, logits, bias):
        groups = weight.detach().unflatten(1, (-1, 4))
        mask = torch.zeros_like(groups).scatter(-1, groups.abs().topk(kept).indices, 1).flatten(1)
        return lambda x: F.linear(x, weight + (weight * mask - weight).detach(), bias)

    monkeypatch.setattr("stochprune.bench.ops.linear_nm._has_sparse_products", lambda like: True)
    assert what in str(nm(monkeypatch, "torchao", lambda n, m: make, "bfloat16"))


def test_gaussian_weights():
    numbers = torch.Generator().manual_seed(0)
    mu, rho = (torch.randn(24, 40, generator=numbers, dtype=torch.float64) for _ in range(2))
    x, grad = laws.probe(24, 40, 8, torch.float32, CPU)

    def one(scale=1.0):
        noise = torch.randn(24, 40, generator=numbers, dtype=torch.float64)
        m, r = (tensor.clone().requires_grad_() for tensor in (mu, rho))
        y = x.double() @ (m + scale * F.softplus(r) * noise).T
        grads = torch.autograd.grad(y, [m, r], grad.double())
        return laws.Pass(x, y.detach(), grad, dict(zip(("weight", "rho"), grads, strict=True)))

    sigma, slope = F.softplus(rho), torch.sigmoid(rho)
    assert laws.gaussian(mu, sigma, slope, one(), one()) is None
    assert "variance" in str(laws.gaussian(mu, sigma, slope, one(1.3), one()))
    assert "rho" in str(laws.gaussian(mu, sigma, slope * 1.1, one(), one()))
