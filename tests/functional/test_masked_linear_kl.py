"""masked_linear_kl is masked_linear and bernoulli_kl, values and gradients."""

from __future__ import annotations

import pytest
import torch

from stochprune.functional import bernoulli_kl, masked_linear, masked_linear_kl
from tests.backends.cases import ESTIMATORS

AT = {"seed": 3, "draw": 5, "stream": 7}

OPS = torch.ops.stochprune


@pytest.fixture
def tensors(generator):
    made = {name: torch.randn(6, 40, generator=generator) for name in ("weight", "logits", "prior_logits")}
    made |= {"x": torch.randn(2, 4, 40, generator=generator), "bias": torch.randn(6, generator=generator)}
    return {name: t.requires_grad_(name != "prior_logits") for name, t in made.items()}


@pytest.mark.parametrize("samples", [None, 3])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_it_is_the_two_ops(tensors, estimator, samples):
    t, options = tensors, {**AT, "estimator": estimator, "temperature": 0.7, "samples": samples}
    trained = [t[name] for name in ("x", "weight", "logits", "bias")]
    y, kl = masked_linear_kl(**t, **options)
    expected = masked_linear(t["x"], t["weight"], t["logits"], t["bias"], **options)
    divergence = bernoulli_kl(t["logits"], t["prior_logits"])
    assert torch.equal(y, expected) and torch.equal(kl, divergence)
    together = torch.autograd.grad(y.square().sum() + 0.3 * kl, trained)
    apart = torch.autograd.grad(expected.square().sum() + 0.3 * divergence, trained)
    for got, value in zip(together, apart, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("used", ["y", "kl"])
def test_one_of_the_results_may_be_unused(tensors, used):
    y, kl = masked_linear_kl(**tensors, **AT)
    loss = y.sum() if used == "y" else kl
    (got,) = torch.autograd.grad(loss, [tensors["logits"]])
    alone = masked_linear(*(tensors[n] for n in ("x", "weight", "logits", "bias")), **AT).sum()
    (value,) = torch.autograd.grad(
        alone if used == "y" else bernoulli_kl(tensors["logits"], tensors["prior_logits"]), [tensors["logits"]]
    )
    torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-6)


def test_the_operators_are_well_formed(tensors):
    t = tensors
    x, seed, draw = t["x"].detach()[:1].requires_grad_(), torch.tensor([1]), torch.tensor([2])
    options = (seed, draw, 3, "straight_through", 1.0, 0, 0)
    forward = OPS.masked_linear_kl.default
    torch.library.opcheck(forward, (x, t["weight"], t["logits"], t["prior_logits"], t["bias"], *options))
    grads = (torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(1)), torch.tensor(2.0, dtype=torch.float64))
    inputs = [tensor.detach() for tensor in (x, t["weight"], t["logits"], t["prior_logits"])]
    backward = OPS.masked_linear_kl_backward.default
    torch.library.opcheck(backward, (*grads, *inputs, *options, True, True, True))


def test_it_compiles_whole(tensors):
    def loss(x, draw):
        y, kl = masked_linear_kl(**{**tensors, "x": x}, seed=1, draw=draw, stream=2)
        return y.sum() + kl

    torch._dynamo.reset()
    draw = torch.tensor([4])
    assert torch.allclose(
        torch.compile(loss, fullgraph=True, backend="aot_eager")(tensors["x"], draw), loss(tensors["x"], draw)
    )


def test_errors(tensors):
    with pytest.raises(ValueError, match=r"masked_linear_kl: .*prior_logits .*gradient"):
        masked_linear_kl(**{**tensors, "prior_logits": tensors["logits"]}, **AT)
    with pytest.raises(ValueError, match=r"prior_logits \(5, 40\).*weight \(6, 40\)"):
        masked_linear_kl(**{**tensors, "prior_logits": torch.zeros(5, 40)}, **AT)
    with pytest.raises(ValueError, match=r"masked_linear_kl: prior_logits .*NaN"):
        masked_linear_kl(**{**tensors, "prior_logits": torch.full((6, 40), float("nan"))}, **AT)
    y, kl = masked_linear_kl(**tensors, **AT)
    (grad,) = torch.autograd.grad(kl + y.sum(), [tensors["weight"]], create_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        grad.sum().backward()
