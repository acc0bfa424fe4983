"""Coverage of the product's own certificates, from split to bound, where the true risk is known by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from stochprune import pac_bayes, rng
from stochprune.data.splits import split
from stochprune.nn import masked_layers
from stochprune.seeding import generator

INPUTS = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)))
MASKS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8))).view(-1, 2, 4)
NOISE = 0.25


def teacher(x: torch.Tensor) -> torch.Tensor:
    return (x[:, 0] + x[:, 1] * x[:, 2] > 0).long()


def true_risk(posterior) -> float:
    """The risk of a masked linear layer [2, 4] over the 16 inputs and both labels."""
    (layer,) = posterior.layers.values()
    q = rng.threshold_from_logits(layer.mask_logits).double() / 32768
    chance = torch.where(MASKS > 0, q, 1 - q).flatten(1).prod(1)  # [256]
    outputs = torch.einsum("hnk,ik->hin", MASKS * layer.weight, posterior.inputs) + layer.bias
    wrong = (outputs.argmax(2) != teacher(INPUTS)).double()  # [256, 16]
    return float(chance @ (wrong * (1 - NOISE) + (1 - wrong) * NOISE).mean(1))


def certificate_fails(repetition: int, objective: str, monte_carlo: str, **options: object) -> bool:
    """Make one certificate from new examples, a new prior, posterior and draws; return whether it fails."""
    numbers = generator(repetition, "examples")
    chosen = torch.from_numpy(numbers.integers(0, 16, 40))
    x, y = INPUTS[chosen], teacher(INPUTS[chosen])
    y = torch.where(torch.from_numpy(numbers.random(40) < NOISE), 1 - y, y)
    parts = split(x, y, 0.5, seed=repetition)
    linear = torch.nn.utils.skip_init(nn.Linear, 4, 2)
    for parameter in linear.parameters():
        parameter.data.copy_(torch.from_numpy(numbers.standard_normal(tuple(parameter.shape))))
    training = pac_bayes.PriorConfig(prior_epochs=4, prior_lr=0.1, prior_batch_size=20, keep=0.8)
    prior = pac_bayes.train_prior(nn.Sequential(linear), parts.prior, training, seed=repetition)
    learning = pac_bayes.SelfBoundConfig(objective=objective, epochs=3, lr=0.3, batch_size=10, **options)
    posterior = pac_bayes.self_bound(prior, parts.certify, learning, seed=repetition, delta=0.2).posterior
    config = pac_bayes.CertifyConfig(delta=0.2, delta_draws=0.1, draws=25, draw_examples=5, monte_carlo=monte_carlo)
    certificate = pac_bayes.certify(posterior, parts.certify, config, seed=repetition)
    posterior.inputs = parts.scaled(INPUTS)
    return true_risk(posterior) > certificate.bound


@pytest.mark.parametrize("monte_carlo", ["betting", "kl"])
def test_certificates_hold(monte_carlo):
    assert np.mean([certificate_fails(r, "kl", monte_carlo) for r in range(25)]) <= 0.3


@pytest.mark.slow
@pytest.mark.parametrize("monte_carlo", ["betting", "kl"])
@pytest.mark.parametrize("objective", ["quadratic", "lambda", "classic", "kl"])
def test_certificates_hold_over_a_thousand_lives(objective, monte_carlo):
    assert np.mean([certificate_fails(r, objective, monte_carlo) for r in range(1000)]) <= 0.3


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"estimator": "local_reparameterisation"}, {"surrogate": "soft_zero_one"}])
def test_certificates_hold_however_the_posterior_is_learnt(options):
    """With four inputs the normal approximation is poor, and a soft loss is not the error; neither enters the bound."""
    assert np.mean([certificate_fails(r, "kl", "betting", **options) for r in range(1000)]) <= 0.3


def test_true_risk_is_that_of_the_draws():
    """The enumerated risk equals the mean over fresh draws on the whole distribution."""
    linear = torch.nn.utils.skip_init(nn.Linear, 4, 2)
    for parameter in linear.parameters():
        parameter.data.copy_(torch.from_numpy(generator(0, "w").standard_normal(tuple(parameter.shape))))
    prior = pac_bayes.train_prior(nn.Sequential(linear), None, pac_bayes.PriorConfig(prior_fraction=0.0, keep=0.6))
    posterior = pac_bayes.make_posterior(prior, "masks")
    posterior.inputs = INPUTS
    assert list(masked_layers(posterior.model)) == ["0.weight"]
    posterior.at(3, 0)
    with torch.no_grad():
        wrong = torch.stack([posterior(INPUTS).argmax(1) != teacher(INPUTS) for _ in range(3000)]).double()
    risk = (wrong * (1 - NOISE) + (1 - wrong) * NOISE).mean(1)
    assert true_risk(posterior) == pytest.approx(risk.mean().item(), abs=4 * risk.std().item() / 3000**0.5)
