"""The objectives against the bounds, and the natural gradient."""

from __future__ import annotations

import pytest
import torch

from stochprune import bounds
from stochprune.pac_bayes import SelfBoundConfig, make_posterior
from stochprune.pac_bayes.loss import bounded_cross_entropy, zero_one
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


def test_losses_lie_in_the_unit_interval():
    outputs = torch.tensor([[100.0, 0.0], [0.0, 100.0], [0.0, 0.0], [float("nan"), 0.0]])
    y = torch.zeros(4, dtype=torch.int64)
    assert zero_one(outputs, y).tolist() == [0, 1, 0, 1]
    losses = bounded_cross_entropy(outputs[:3], y[:3], 1e-4)
    assert losses.tolist() == pytest.approx([0, 1, torch.tensor(2.0).log().item() / torch.tensor(1e4).log().item()])
