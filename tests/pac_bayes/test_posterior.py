"""Posteriors: KL, curvatures and the sampled networks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from scipy.special import rel_entr
from torch import nn
from torch.utils.checkpoint import checkpoint

from stochprune import rng
from stochprune.models import pbb_cnn
from stochprune.models.initialise import initialised
from stochprune.nn import convert, masked_layers
from stochprune.nn.random_weights import RandomLinear
from stochprune.pac_bayes import Posterior, Prior, PriorConfig, make_posterior, train_prior
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


def test_kl_of_weights_and_masks_by_hand(posterior, prior):
    move(posterior)
    start = masked_layers(prior.model)
    for name, value in posterior.kl().items():
        layer, p = posterior.layers[name], torch.sigmoid(start[name].mask_logits.double())
        q = rng.threshold_from_logits(layer.mask_logits).double() / 32768
        expected = torch.as_tensor(rel_entr(q.numpy(), p.numpy()) + rel_entr(1 - q.numpy(), 1 - p.numpy()))
        if hasattr(layer, "rho"):
            mean0 = start[name].weight if layer.masked else start[name].weight * torch.sigmoid(start[name].mask_logits)
            s = layer.sigma
            gaussian = torch.log(0.1 / s) + (s**2 + (layer.weight.double() - mean0) ** 2) / (2 * 0.1**2) - 0.5
            expected = expected + q * gaussian if layer.masked else gaussian
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


@pytest.mark.parametrize("family", FAMILIES)
def test_pre_activations_have_the_moments_of_the_networks(family):
    """Equal examples get different pre-activations, but equal outputs from one sampled network."""
    conv = lambda: nn.Conv2d(4, 4, 2, stride=2, padding=1, padding_mode="circular", groups=2)  # noqa: E731
    posterior = make_posterior(data_free(conv), family)
    move(posterior)
    x = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(2)).expand(10, -1, -1, -1)

    def draws(posterior: Posterior, count: int) -> torch.Tensor:
        posterior.at(5, 0)
        with torch.no_grad():
            return torch.stack([posterior(x) for _ in range(count)])

    networks = draws(posterior, 300)
    posterior.estimate_by("local_reparameterisation")
    local = draws(posterior, 30)
    assert torch.equal(networks[:, 0], networks[:, 1]) and not torch.equal(local[:, 0], local[:, 1])
    found, expected = local.flatten(0, 1), networks[:, 0]  # 300 draws of each
    assert ((found.mean(0) - expected.mean(0)) / (expected.std(0) * math.sqrt(2 / 300))).abs().max() < 4.5
    assert torch.allclose(found.std(0), expected.std(0), rtol=0.25)
    other = copy.deepcopy(posterior)
    posterior.estimate_by("straight_through")
    assert torch.equal(draws(posterior, 5), networks[:5])
    assert torch.equal(draws(other, 5), local[:5]), "a copy goes its own way"


def test_kept_counts_the_sampled_masks(prior):
    posterior = make_posterior(prior, "masks")
    layer = posterior.layers["fc1.weight"]
    posterior.at(5, 2)
    with torch.no_grad():
        seen = layer(torch.eye(6)) - layer.bias  # the masked weight, transposed
    assert posterior.kept(5, 2)["fc1.weight"] == (int((seen != 0).sum()), 72)
    assert make_posterior(prior, "gaussian").kept(5, 2) == {}


@pytest.mark.parametrize(("pattern", "kept"), [("2:4", {32}), ("columns", {8 * k for k in range(9)})])
def test_kept_counts_weights_under_patterns(pattern, kept):
    network = convert(initialised(lambda: nn.Sequential(nn.Linear(8, 8)), 0), pattern=pattern, keep_kept=0.5)
    count, of = make_posterior(Prior(network, ()), "masks").kept(5, 2)["0.weight"]
    assert count in kept and of == 64


def test_unknown_family(prior):
    with pytest.raises(ValueError, match=r"'laplace'.*masks, gaussian, spike_and_slab"):
        make_posterior(prior, "laplace")


def test_tied_weights_are_refused_by_weight_posteriors(prior):
    model = copy.deepcopy(prior.model)
    model.fc1.weight = model.fc2.weight
    with pytest.raises(ValueError, match="share"):
        make_posterior(Prior(model, prior.seen, prior.sigma), "gaussian")


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_that_the_kl_counts_otherwise_are_refused(family):
    """Two models converted separately have the same stream, and the same uniforms, for weights of one name."""
    halves = [convert(initialised(lambda: nn.Sequential(nn.Linear(4, 4)), i), keep_kept=0.8) for i in (0, 1)]
    model = nn.Sequential(*halves)
    with pytest.raises(ValueError, match=r"0\.0\.weight and 1\.0\.weight share.*stream.*logits"):
        make_posterior(Prior(model, ()), family)
    model[1][0].stream, model[1][0].mask_logits = 7, model[0][0].mask_logits
    with pytest.raises(ValueError, match=r"share logits.*streams"):
        make_posterior(Prior(model, ()), family)

    model[1][0].stream, model[1][0].mask_logits = 7, nn.Parameter(model[0][0].mask_logits.detach().clone())
    posterior = make_posterior(Prior(model, ()), family)
    posterior.layers["1.0.weight"].stream = posterior.layers["0.0.weight"].stream
    with pytest.raises(ValueError, match=r"share.*stream.*logits"):
        posterior.require_paid("certify")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_setting_may_not_change_after_the_prior(family):
    """The change may depend on the examples that certify."""
    prior = data_free(lambda: nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.1), nn.Linear(4, 2)))
    posterior = make_posterior(prior, family)
    posterior.require_paid("certify")
    posterior.model[1].negative_slope = 0.2
    with pytest.raises(ValueError, match=r"certify: the module 1 differs"):
        posterior.require_paid("certify")
    prior.model[1] = nn.ReLU()
    with pytest.raises(ValueError, match=r"make_posterior: the prior was edited.*: 1 differs"):
        make_posterior(prior, family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(family, use_reentrant):
    posterior, found = make_posterior(data_free(lambda: nn.Linear(4, 2)), family), []
    tensors = [tensor.requires_grad_() for tensor, _ in posterior.curvatures()]
    for run in (posterior, lambda x: checkpoint(posterior, x, use_reentrant=use_reentrant)):
        posterior.at(0, 5)
        run(torch.ones(3, 4, requires_grad=True)).square().sum().backward()
        found.append([tensor.grad for tensor in tensors])
        for tensor in tensors:
            tensor.grad = None
    for plain, repeated in zip(*found, strict=True):
        torch.testing.assert_close(repeated, plain)


def data_free(construct: Callable[[], nn.Module], include: object = None) -> Prior:
    """Its masks keep with probability 0.8, its standard deviations are 0.1."""
    return Prior(convert(initialised(construct, 0), keep_kept=0.8, include=include), (), 0.1)


def test_a_layer_with_two_names_is_random_under_both():
    def construct() -> nn.Module:
        layer = nn.Linear(4, 4)
        return nn.Sequential(layer, nn.Tanh(), layer)

    posterior = make_posterior(data_free(construct), "gaussian")
    assert posterior.model[0] is posterior.model[2] is posterior.layers["0.weight"]
    assert isinstance(posterior.model[2], RandomLinear)


def test_hooks_stay_with_their_layer():
    prior, seen = data_free(lambda: nn.Sequential(nn.Linear(4, 2))), []
    prior.model[0].register_forward_hook(lambda layer, x, y: seen.append(type(layer)))
    make_posterior(prior, "gaussian")(torch.ones(1, 4))
    assert seen == [RandomLinear]


def test_nothing_to_make_random_is_refused():
    prior = data_free(lambda: nn.Sequential(nn.Embedding(5, 4)), include="*")
    with pytest.raises(ValueError, match=r"linear layer.*convolution"):
        make_posterior(prior, "gaussian")


def test_other_layers_keep_the_prior_s_masks():
    """An embedding and N:M masks keep the prior's masks, and add nothing to the KL."""
    model = initialised(lambda: nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 2)), 0)
    convert(convert(model, include="1.*", pattern="2:4"), include=["0.*", "2.*"], keep_kept=0.8)
    posterior = make_posterior(Prior(model, (), 0.1), "gaussian")
    assert list(posterior.random) == ["2.weight"] and list(posterior.masks()) == ["0.weight", "1.weight"]
    assert [value.item() for value in posterior.kl().values()] == pytest.approx([0, 0, 0], abs=1e-7)
    assert {id(t) for t, _ in posterior.curvatures()} == {id(posterior.model[2].weight), id(posterior.model[2].rho)}


@pytest.mark.parametrize("family", FAMILIES)
def test_posteriors_over_a_convolutional_network(family):
    """Every family trains its convolutions and counts them in the KL."""
    prior = train_prior(pbb_cnn(1, (8, 8), 4, seed=0), None, PriorConfig(prior_fraction=0.0, keep=0.8))
    posterior = make_posterior(prior, family)
    move(posterior, 0.1)
    found = posterior.kl()
    assert [*found] == ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"]
    assert all(value.item() > 0.1 for value in found.values())
    posterior.at(2, 5)
    assert posterior(torch.ones(3, 1, 8, 8)).shape == (3, 4)
    posterior.require_one_draw(5)
    trained = {id(tensor) for tensor, _ in posterior.curvatures()}
    layer = posterior.layers["conv2.weight"]
    assert (id(layer.mask_logits) in trained) == (family != "gaussian")
    assert (id(layer.weight) in trained) == (family != "masks")
    assert list(posterior.kept(2, 5)) == ([] if family == "gaussian" else list(found))
