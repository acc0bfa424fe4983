"""The objectives against the bounds, and the natural gradient."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stochprune import bounds, rng
from stochprune.models.initialise import initialised
from stochprune.nn import convert
from stochprune.pac_bayes import Prior, SelfBoundConfig, make_posterior
from stochprune.pac_bayes.loss import bounded_cross_entropy, soft_zero_one, zero_one
from stochprune.pac_bayes.objective import NaturalGradient, Objective

REFERENCE = {
    "quadratic": bounds.quadratic,
    "classic": bounds.mcallester,
    "kl": bounds.maurer,
    "lambda": lambda *a: bounds.lam(*a, 1.0),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_the_loss_is_the_bound_at_the_batch(name, prior, parts):
    objective = Objective(make_posterior(prior, "masks"), 200, 0.05, SelfBoundConfig(objective=name))
    with torch.no_grad():
        objective.posterior.logits[0] += 0.5
    outputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    loss = objective.loss(outputs, parts.certify.y[:20])
    risk = bounded_cross_entropy(outputs, parts.certify.y[:20], 1e-4).double().mean().item()
    kl = sum(value.item() for value in objective.posterior.kl().values())
    assert loss.item() == pytest.approx(REFERENCE[name](risk, kl, 200, 0.05))
    slope = (REFERENCE[name](risk, kl + 1e-4, 200, 0.05) - REFERENCE[name](risk, kl - 1e-4, 200, 0.05)) / 2e-4
    assert objective.slope == pytest.approx(slope, rel=1e-4)


def test_the_temperature_of_the_surrogate_falls_geometrically(prior, parts):
    config = SelfBoundConfig(surrogate="soft_zero_one", first_softness=2.0, last_softness=0.02)
    objective = Objective(make_posterior(prior, "masks"), 200, 0.05, config, steps=4)
    outputs, y = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)), parts.certify.y[:20]
    for temperature in (2.0, 2.0 / 10**0.5, 0.2, 0.02 * 10**0.5, 0.02):
        wrong = 1 - torch.exp(-F.cross_entropy(outputs.double() / temperature, y, reduction="none")).mean()
        assert objective.loss(outputs, y).item() == pytest.approx(
            bounds.quadratic(wrong.item(), 0.0, 200, 0.05), rel=1e-5
        )


def test_lambda_goes_to_its_optimum(prior, parts):
    objective = Objective(make_posterior(prior, "masks"), 200, 0.05, SelfBoundConfig(objective="lambda"))
    outputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    before = objective.loss(outputs, parts.certify.y[:20]).item()
    numbers = objective.measure()
    assert numbers["lam"] == 1.0
    assert objective.lam.item() == bounds.optimal_lambda(numbers["risk"], numbers["kl"], 200, 0.05)
    assert objective.loss(outputs, parts.certify.y[:20]).item() < before


@pytest.mark.parametrize("family", ["masks", "gaussian", "spike_and_slab"])
def test_a_step_of_rate_one_meets_the_linearised_minimum(family, prior):
    """With a linear risk a.theta the minimum of risk f_r + KL f_KL lies at -(f_r / f_KL) a / curvature."""
    posterior = make_posterior(prior, family)
    objective = Objective(posterior, 10**6, 0.05, SelfBoundConfig())
    tensors = posterior.curvatures()
    optimizer = torch.optim.SGD([tensor for tensor, _ in tensors], lr=1.0)
    start = [tensor.detach().clone() for tensor, _ in tensors]
    generator = torch.Generator().manual_seed(1)
    slopes = [1e-9 * torch.randn(tensor.shape, generator=generator) * curvature.sqrt() for tensor, curvature in tensors]
    objective.slope = 1e-6
    for _ in range(2):  # the second step stays there
        optimizer.zero_grad()
        kl = torch.stack(list(posterior.kl().values())).sum()
        linear = sum((slope * tensor).sum() for slope, (tensor, _) in zip(slopes, tensors, strict=True))
        (linear + 1e-6 * kl).backward()
        NaturalGradient(objective).before_step()
        optimizer.step()
    for (tensor, curvature), begin, slope in zip(tensors, start, slopes, strict=True):
        moved, expected = tensor.detach() - begin, -slope / (1e-6 * curvature)
        assert torch.allclose(moved, expected, atol=float(expected.abs().max()) * 0.05)


def convolutional() -> nn.Module:
    layers = OrderedDict(conv=nn.Conv2d(2, 3, 2, padding="same"), relu=nn.ReLU(), flat=nn.Flatten())
    return nn.Sequential(layers | OrderedDict(fc=nn.Linear(27, 3)))


def linear() -> nn.Module:
    return nn.Sequential(
        OrderedDict(flat=nn.Flatten(), fc1=nn.Linear(18, 5), relu=nn.ReLU(), fc2=nn.Linear(5, 3, bias=False))
    )


@pytest.mark.parametrize("family", ["masks", "gaussian", "spike_and_slab"])
@pytest.mark.parametrize("construct", [linear, convolutional])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_the_gradient_under_local_reparameterisation(construct, family):
    """The whole objective agrees with autograd in float64 of moments, normals, loss, KL and bound written by hand."""
    posterior = make_posterior(Prior(convert(initialised(construct, 0), keep_kept=0.7), (), 0.3), family)
    numbers = torch.Generator().manual_seed(3)
    starts = {name: [t.detach().double() for t in parameters(layer)] for name, layer in posterior.layers.items()}
    with torch.no_grad():
        for tensor, curvature in posterior.curvatures():
            tensor += 0.3 * torch.randn(tensor.shape, generator=numbers) / curvature.sqrt()
    x = torch.randn(6, 2, 3, 3, generator=numbers)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    posterior.at(9, 4)
    posterior.estimate_by("local_reparameterisation")
    objective = Objective(posterior, 1000, 0.05, SelfBoundConfig(p_min=1e-3))
    loss = objective.loss(objective(x), y)
    trained = [tensor for tensor, _ in posterior.curvatures()]
    found = torch.autograd.grad(loss, trained)

    twins: dict[int, torch.Tensor] = {}
    out, kl = x.double(), torch.zeros((), dtype=torch.float64)
    for path, module in posterior.model.named_children():
        if not (layer := posterior.layers.get(f"{path}.weight")):
            out = module(out)
            continue
        logits, w, rho = (t.detach().double().requires_grad_() for t in parameters(layer))
        twins |= {id(a): b for a, b in zip(parameters(layer), (logits, w, rho), strict=True)}
        logits0, w0, rho0 = starts[f"{path}.weight"]
        q, p, s, s0 = torch.sigmoid(logits), torch.sigmoid(logits0), F.softplus(rho), F.softplus(rho0)
        bernoulli = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).sum()
        gaussian = (s0 / s).log() + (s**2 + (w - w0) ** 2) / (2 * s0**2) - 0.5
        if family == "masks":
            mean, variance, cost = q * w, q * w**2 - (q * w) ** 2, bernoulli
        elif family == "gaussian":
            mean, variance, cost = w, s**2, gaussian.sum()
        else:
            mean, variance = q * w, q * (w**2 + s**2) - (q * w) ** 2
            cost = bernoulli + (q * gaussian).sum()
        op = F.linear if w.dim() == 2 else partial(F.conv2d, padding="same")
        middle = op(out, mean, None if layer.bias is None else layer.bias.double())
        e = rng.normal(6, middle[0].numel(), seed=9, draw=4, stream=layer.stream).view_as(middle)
        out, kl = middle + op(out**2, variance).sqrt() * e, kl + cost
    chance = torch.softmax(out, 1)[torch.arange(6), y].clamp_min(1e-3)
    risk, b = -chance.log().mean() / math.log(1e3), (kl + math.log(2 * math.sqrt(1000) / 0.05)) / 1000
    expected = ((risk + b / 2).sqrt() + (b / 2).sqrt()) ** 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for g, want in zip(found, torch.autograd.grad(expected, [twins[id(t)] for t in trained]), strict=True):
        assert (g - want).norm() < 2e-4 * want.norm()


def parameters(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits, weight and rho; a placeholder if the layer has no rho."""
    return layer.mask_logits, layer.weight, getattr(layer, "rho", torch.zeros_like(layer.weight))


def test_losses_lie_in_the_unit_interval():
    outputs = torch.tensor([[100.0, 0.0], [0.0, 100.0], [0.0, 0.0], [float("nan"), 0.0]])
    y = torch.zeros(4, dtype=torch.int64)
    assert zero_one(outputs, y).tolist() == [0, 1, 0, 1]
    assert soft_zero_one(outputs[:3], y[:3], 1.0).tolist() == pytest.approx([0, 1, 0.5])
    losses = bounded_cross_entropy(outputs[:3], y[:3], 1e-4)
    assert losses.tolist() == pytest.approx([0, 1, torch.tensor(2.0).log().item() / torch.tensor(1e4).log().item()])


def test_the_soft_loss_goes_to_the_error():
    numbers = torch.Generator().manual_seed(2)
    outputs, y = torch.randn(200, 5, generator=numbers), torch.randint(0, 5, (200,), generator=numbers)
    assert (soft_zero_one(outputs, y, 1e-4) - zero_one(outputs, y)).abs().max() < 1e-3
    assert (soft_zero_one(outputs, y, 1.0) - zero_one(outputs, y)).abs().mean() > 0.2
