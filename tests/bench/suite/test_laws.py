"""The checks of contenders see what is wrong: each way to be wrong is tried."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from stochprune import patterns
from stochprune.bench import laws
from stochprune.bench.case import Case
from stochprune.bench.ops import OPS, attention, conv2d, embedding, gaussian_linear, linear_nm_ways, linear_ways
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


def test_independent_masks_of_few_columns_are_right():
    numbers = torch.Generator().manual_seed(0)
    q = torch.sigmoid(torch.randn(2000, 400, 1, generator=numbers, dtype=torch.float64))
    keep = torch.rand(q.shape, generator=numbers, dtype=torch.float64) < q
    assert not any(laws.dependent(*pair) for pair in zip(keep, q, strict=True))
    assert laws.dependent(torch.ones(400, 1) == 1, torch.full((400, 1), 0.5, dtype=torch.float64))


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


CHANGES = {
    "mean weights": (lambda m, q, w: w * q, "weights"),
    "too few": (lambda m, q, w: w * through(m * (q > 0.4), q), "keeps"),
    "without logits": (lambda m, q, w: w * through(m.roll(1, 0), q), "keeps"),
    "scaled": (lambda m, q, w: w * through(m, q) * 1.01, "weights"),
    "no gradient of the logits' slope": (lambda m, q, w: w * (through(m, q) + q - q.detach()), "logits"),
    "weight's gradient without the mask": (lambda m, q, w: (w - w.detach()) + w.detach() * through(m, q), "weight"),
}
WRONG = {name: (masked(change), what) for name, (change, what) in CHANGES.items()}


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


WIDE = {"rows": 80, "cols": 260, "tokens": 32}
LARGE = {
    "linear": (linear_ways, WIDE),
    "linear_nm": (linear_nm_ways, {**WIDE, "n": 2, "m": 4}),
    "gaussian_linear": (gaussian_linear, WIDE),
    "conv2d": (conv2d, {"examples": 8, "channels": 16, "filters": 48, "size": 6}),
    "embedding": (embedding, {"rows": 300, "cols": 200, "tokens": 64}),
    "attention": (attention, {"examples": 2, "tokens": 12, "width": 64}),
}
"""By the op: the module of its ways, and a shape that has more weights than the small layer of the check."""


def check_eager(op):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OPS[op].check("eager", Case("", op, LARGE[op][1]), CPU).wrong


def at_large_shapes(op, right, wrong):
    """A way that is wrong for weights with more entries than those of the small layer."""
    limit = torch.Size(OPS[op].shapes("eager", OPS[op].small(Case("", op, LARGE[op][1])))["weight"]).numel()
    return lambda *tensors: (wrong if tensors[0].numel() > limit else right)(*tensors)


def scaled(right):
    """The same way with smaller weights; its masks and its bias are right."""
    return lambda weight, *rest: lambda x: right(weight * torch.linspace(0.5, 1, weight.shape[-1]), *rest)(x)


@pytest.mark.parametrize("op", LARGE)
def test_a_way_that_is_wrong_at_large_shapes_only_is_seen(monkeypatch, op):
    module, right = LARGE[op][0], LARGE[op][0].CONTENDERS["eager"]
    assert check_eager(op) is None
    if op == "linear_nm":
        wrong = lambda n, m: at_large_shapes(op, right(n, m), scaled(right(n, m)))  # noqa: E731
    else:
        wrong = at_large_shapes(op, right, scaled(right))
    monkeypatch.setitem(module.CONTENDERS, "eager", wrong)
    assert "at the shape of the case" in check_eager(op)


def one_mask(weight, logits, bias):
    mask = torch.bernoulli(torch.sigmoid(logits.detach()))
    return lambda x: F.linear(x, weight * through(mask, torch.sigmoid(logits)), bias)


def without_bias_gradient(weight, logits, bias):
    return lambda x: linear_ways.eager(weight, logits, bias.detach() + 0 * bias)(x)


def gradient_of_unused_weights(weight, logits, bias):
    def forward(x):
        unused = weight[:, (x == 0).all(0)].sum()
        return linear_ways.eager(weight, logits, bias)(x) + unused - unused.detach()

    return forward


FAULTS = {one_mask: "same mask", without_bias_gradient: "gradient of bias", gradient_of_unused_weights: "inputs are 0"}


@pytest.mark.parametrize("wrong", FAULTS)
def test_other_faults_at_large_shapes_are_seen(monkeypatch, wrong):
    way = at_large_shapes("linear", linear_ways.eager, wrong)
    monkeypatch.setitem(linear_ways.CONTENDERS, "eager", way)
    found = check_eager("linear")
    assert "at the shape of the case" in found and FAULTS[wrong] in found


LAYERS = {"embedding": embedding, "attention": attention}


@pytest.mark.parametrize("op", LAYERS)
@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_embedding_or_attention_is_seen(monkeypatch, op, name):
    numbers = torch.Generator().manual_seed(0)

    def mask(weight, logits):
        q = torch.sigmoid(logits)
        sampled = (torch.rand(q.shape, generator=numbers) < q).to(q.dtype)
        return CHANGES[name][0](sampled, q, weight)

    ways = {
        "embedding": lambda weight, logits: lambda x: F.embedding(x, mask(weight, logits)),
        "attention": functools.partial(attention.eager, mask=mask),
    }
    monkeypatch.setitem(LAYERS[op].CONTENDERS, "eager", ways[op])
    assert check_eager(op)


@pytest.mark.parametrize("op", LAYERS)
@pytest.mark.parametrize("mode", ["joint", "mask-only"])
def test_embedding_and_attention_are_right_in_both_modes(op, mode):
    for contender in [name for name in OPS[op].laws if name != "compile"]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            verdict = OPS[op].check(contender, Case("layers", op, LARGE[op][1], mode=mode), CPU)
        assert verdict.wrong is None and verdict.bits_equal is (True if contender == "ours" else None)


def test_a_token_with_two_masks_is_seen(monkeypatch):
    each_token = lambda weight, logits: lambda x: linear_ways.straight_through(weight[x], logits[x])  # noqa: E731
    monkeypatch.setitem(embedding.CONTENDERS, "eager", each_token)
    assert "output" in check_eager("embedding")


@pytest.mark.parametrize(("op", "name"), [("embedding", "STREAM"), ("attention", "SEED")])
def test_another_address_of_embedding_or_attention_is_seen(monkeypatch, op, name):
    monkeypatch.setattr(LAYERS[op], name, 3)
    verdict = OPS[op].check("ours", Case("layers", op, LARGE[op][1]), CPU)
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
