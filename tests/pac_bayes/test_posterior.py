"""Posteriors: divergences, curvatures and what is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import rel_entr

from stochprune import rng
from stochprune.models import pbb_cnn
from stochprune.nn import masked_layers
from stochprune.pac_bayes import PriorConfig, make_posterior, train_prior
from stochprune.pac_bayes.families import FAMILIES


@pytest.fixture(params=FAMILIES)
def posterior(request, prior):
    return make_posterior(prior, request.param)


def total(posterior) -> torch.Tensor:
    return torch.stack(list(posterior.kl().values())).sum()


def move(posterior, amount: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor, curvature in posterior.curvatures():
            tensor += amount * torch.randn(tensor.shape, generator=generator) / curvature.sqrt()


def test_the_posterior_starts_at_the_prior(posterior, prior):
    assert total(posterior).item() < 1e-9
    before = {name: layer.mask_logits.clone() for name, layer in masked_layers(prior.model).items()}
    move(posterior)
    assert total(posterior).item() > 0.1
    assert all(torch.equal(layer.mask_logits, before[name]) for name, layer in masked_layers(prior.model).items())


def test_curvature_is_the_second_derivative_at_the_prior(posterior):
    """A single weight moved by h costs curvature h^2 / 2, up to the quantisation of q."""
    for tensor, curvature in posterior.curvatures():
        h = 0.01 / curvature.flatten()[0].sqrt().item()
        with torch.no_grad():
            tensor.view(-1)[0] += h
        assert total(posterior).item() == pytest.approx(0.01**2 / 2, rel=0.05)
        with torch.no_grad():
            tensor.view(-1)[0] -= h


def test_divergence_of_weights_and_masks_by_hand(posterior, prior):
    move(posterior)
    start = masked_layers(prior.model)
    for name, value in posterior.kl().items():
        layer, p = posterior.layers[name], torch.sigmoid(start[name].mask_logits.double())
        q = rng.threshold_from_logits(layer.mask_logits).double() / 32768
        expected = torch.as_tensor(rel_entr(q.numpy(), p.numpy()) + rel_entr(1 - q.numpy(), 1 - p.numpy()))
        if hasattr(layer, "rho"):
            mean0 = start[name].weight if layer.slab else start[name].weight * torch.sigmoid(start[name].mask_logits)
            s = layer.sigma
            gaussian = torch.log(0.1 / s) + (s**2 + (layer.weight.double() - mean0) ** 2) / (2 * 0.1**2) - 0.5
            expected = expected + q * gaussian if layer.slab else gaussian
        assert value.item() == pytest.approx(expected.sum().item(), rel=1e-5)


def test_draws_are_addresses(posterior, parts):
    x = parts.certify.x[:5]

    def draw(seed: int, number: int) -> torch.Tensor:
        posterior.at(seed, number)
        return posterior(x)

    with torch.no_grad():
        assert torch.equal(draw(3, 8), draw(3, 8)) and not torch.equal(draw(3, 8), draw(3, 9))
        assert not torch.equal(draw(4, 8), draw(3, 8))
        posterior.at(3, 7)
        posterior(x)
        assert torch.equal(posterior(x), draw(3, 8)), "the next forward takes the next draw"


def test_mean_and_spread_of_a_linear_layer(prior):
    """Over 4,000 draws, a first-layer output has the mean and variance of its distribution."""
    for family in FAMILIES:
        posterior = make_posterior(prior, family)
        layer = posterior.layers["fc1.weight"]
        x = torch.ones(1, 6)
        posterior.at(11, 0)
        with torch.no_grad():
            draws = torch.stack([layer(x)[0] for _ in range(4000)]).double()
        w, q = layer.weight.detach().double(), torch.sigmoid(layer.mask_logits.detach().double())
        mean, var = {
            "masks": (q * w, q * (1 - q) * w**2),
            "gaussian": (w, torch.full_like(w, 0.01)),
            "spike_and_slab": (q * w, q * (0.01 + w**2) - (q * w) ** 2),
        }[family]
        spread = var.sum(1).sqrt()
        assert ((draws.mean(0) - mean.sum(1) - layer.bias) / spread).abs().max() < 4.5 / math.sqrt(4000)
        assert torch.allclose(draws.var(0), var.sum(1), rtol=0.15)


def test_kept_counts_what_is_drawn(prior):
    posterior = make_posterior(prior, "masks")
    layer = posterior.layers["fc1.weight"]
    posterior.at(5, 2)
    with torch.no_grad():
        seen = layer(torch.eye(6)) - layer.bias  # the masked weight, transposed
    assert posterior.kept(5, 2)["fc1.weight"] == (int((seen != 0).sum()), 72)
    assert make_posterior(prior, "gaussian").kept(5, 2) == {}


def test_unknown_family(prior):
    with pytest.raises(ValueError, match="unknown posterior 'laplace'; known are: masks, gaussian, spike_and_slab"):
        make_posterior(prior, "laplace")


def test_tied_weights_are_refused_by_weight_posteriors(prior):
    import copy

    tied = copy.deepcopy(prior)
    tied.model.fc1.weight = tied.model.fc2.weight
    with pytest.raises(ValueError, match="linear layers that share no weight"):
        make_posterior(tied, "gaussian")


@pytest.mark.parametrize("family", FAMILIES)
def test_convolutions(family):
    """They keep their masks; a posterior over masks trains these, one over weights leaves them at the prior's."""
    prior = train_prior(pbb_cnn(1, (8, 8), 4, seed=0), None, PriorConfig(prior_fraction=0.0, keep=0.8))
    posterior = make_posterior(prior, family)
    assert [*posterior.kl()] == ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"]
    posterior.at(2, 5)
    assert posterior(torch.ones(3, 1, 8, 8)).shape == (3, 4)
    kept, count = posterior.kept(2, 5)["conv2.weight"]
    assert count == 64 * 32 * 9 and abs(kept / count - 0.8) < 0.02
    trained = {id(tensor) for tensor, _ in posterior.curvatures()}
    assert (id(posterior.layers["conv2.weight"].mask_logits) in trained) == (family == "masks")
