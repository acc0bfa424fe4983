"""Priors: trained under their masks, on their own part alone."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from stochprune import certify, rng, scores, self_bound
from stochprune.models import mlp
from stochprune.nn import masked_layers, sampling
from stochprune.pac_bayes import CertifyConfig, Prior, PriorConfig, SelfBoundConfig, make_posterior, train_prior
from stochprune.pac_bayes.families import FAMILIES
from stochprune.pac_bayes.prior import representable
from stochprune.training import CheckpointError
from tests.pac_bayes.conftest import make_split


def test_probabilities_are_representable(prior):
    for layer in masked_layers(prior.model).values():
        threshold = rng.threshold_from_logits(layer.mask_logits).double()
        assert (threshold == round(0.9 * 32768)).all()
        assert torch.allclose(torch.sigmoid(layer.mask_logits.double()), threshold / 32768, atol=1e-7)
        assert torch.equal(representable(layer.mask_logits), layer.mask_logits)


def test_training_moves_weights_and_not_probabilities(prior, parts):
    start = mlp((6, 12, 3), seed=0)
    assert prior.seen == (parts.prior,)
    assert not torch.equal(prior.model.fc1.weight, start.fc1.weight)
    assert not any(parameter.requires_grad for parameter in prior.model.parameters())
    wrong = (prior.model(parts.certify.x).argmax(dim=1) != parts.certify.y).double().mean()
    assert wrong < 0.35


def test_a_checkpoint_of_another_part_is_refused(tmp_path, parts):
    """Otherwise the prior would have seen examples that its record leaves out."""
    config = PriorConfig(prior_epochs=1)
    other = make_split(fraction=0.25).prior
    first = train_prior(mlp((6, 12, 3), seed=0), parts.prior, config, folder=tmp_path)
    again = train_prior(mlp((6, 12, 3), seed=0), parts.prior, config, folder=tmp_path)
    assert torch.equal(again.model.fc1.weight, first.model.fc1.weight)
    for part, seed in ((other, 0), (parts.prior, 1)):
        with pytest.raises(CheckpointError):
            train_prior(mlp((6, 12, 3), seed=0), part, config, seed=seed, folder=tmp_path)
    with pytest.raises(CheckpointError):
        train_prior(
            mlp((6, 12, 3), seed=0), parts.prior, PriorConfig(prior_epochs=1, prior_batch_size=32), folder=tmp_path
        )


def test_the_optimiser_of_the_prior(parts, priors):
    """Weight decay shrinks weights; SGD and Adam differ."""
    found = [
        priors(parts, prior_epochs=5, **options).model.fc1.weight.norm()
        for options in ({}, {"prior_optimizer": "sgd"}, {"prior_optimizer": "sgd", "prior_weight_decay": 0.3})
    ]
    assert found[0] != found[1] and found[2] < 0.9 * found[1]


def test_a_data_free_prior_is_the_initial_network(parts, priors):
    config = PriorConfig(prior_fraction=0.0, keep=0.5)
    prior = train_prior(mlp((6, 12, 3), seed=0), None, config)
    assert prior.seen == ()
    assert torch.allclose(prior.model.fc1.weight, mlp((6, 12, 3), seed=0).fc1.weight * 2**0.5)


@pytest.mark.parametrize("score", [*scores._SCORES])
def test_every_score_prunes(parts, priors, score):
    prior = priors(parts, score=score, sparsity=0.5, keep_pruned=0.2)
    q = torch.cat([torch.sigmoid(layer.mask_logits).flatten() for layer in masked_layers(prior.model).values()])
    assert q.numel() == 108 and ((q - 0.9).abs() < 1e-4).sum() == 54 and ((q - 0.2).abs() < 1e-4).sum() == 54


def test_a_score_needs_data():
    with pytest.raises(ValueError, match="score snip"):
        train_prior(mlp((6, 3), seed=0), None, PriorConfig(score="snip", sparsity=0.5))


def test_include_names_what_is_random(parts, priors):
    assert [*masked_layers(priors(parts, include="fc2*", score="magnitude", sparsity=0.5).model)] == ["fc2.weight"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 1.0}, "keep.*got 1.0"),
        ({"score": "snip"}, "score snip.*sparsity 0"),
        ({"score": "snap", "sparsity": 0.5}, "score 'snap'.*magnitude, random"),
        ({"sparsity": 0.5}, "score none.*sparsity 0.5"),
        ({"prior_fraction": 1.0}, "prior_fraction.*got 1.0"),
        ({"sigma": 0.0}, "sigma.*got 0"),
        ({"prior_weight_decay": -1.0}, "prior_weight_decay.*got -1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        PriorConfig(**options)


def edit_weight(model):
    masked_layers(model)["fc1.weight"].weight.data[0, 0] += 1


def edit_logits(model):
    masked_layers(model)["fc2.weight"].mask_logits.data.add_(1e-3)


def edit_bias(model):
    model.fc2.bias.data[1] = math.nan


def edit_dtype(model):
    model.double()


def add_buffer(model):
    model.register_buffer("extra", torch.zeros(1))


EDITS = [edit_weight, edit_logits, edit_bias, edit_dtype, add_buffer]


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("use", ["make_posterior", "self_bound", "certify"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prior_edited_after_training_is_refused(prior, parts, edit, use, family):
    """An edit may depend on the examples that certify."""
    mine = Prior(copy.deepcopy(prior.model), prior.seen, prior.sigma)
    posterior = make_posterior(mine, family)
    edit(mine.model)
    calls = {
        "make_posterior": lambda prior: make_posterior(prior, family),
        "self_bound": lambda prior: self_bound(prior, parts.certify, SelfBoundConfig(epochs=0), family=family),
        "certify": lambda _: certify(posterior, parts.certify, CertifyConfig(draws=2)),
    }
    with pytest.raises(ValueError, match=rf"{use}: the prior.*edited"):
        calls[use](mine)
    again = Prior(mine.model, prior.seen, prior.sigma)
    assert again.digest != mine.digest and make_posterior(again, family).prior is again


@pytest.mark.parametrize("family", FAMILIES)
def test_a_posterior_may_differ_from_its_prior_in_what_is_paid_for_alone(prior, parts, family):
    posterior = make_posterior(prior, family)
    for tensor, _ in posterior.curvatures():
        tensor.data.add_(1e-3)
    certify(posterior, parts.certify, CertifyConfig(draws=2))
    posterior.model.fc1.bias.data[0] += 1
    with pytest.raises(ValueError, match=r"certify: fc1\.bias"):
        certify(posterior, parts.certify, CertifyConfig(draws=2))
    posterior.model.fc1.bias = None
    with pytest.raises(ValueError, match=r"certify: fc1\.bias"):
        certify(posterior, parts.certify, CertifyConfig(draws=2))


def test_a_digest_of_what_a_prior_is(prior, parts):
    same = Prior(copy.deepcopy(prior.model), [parts.prior], prior.sigma)
    assert same.digest == prior.digest
    with sampling(same.model):
        same.model(parts.prior.x)  # its counters move, and no tensor of the distribution
    same.require_unedited("test")
    others = [Prior(prior.model, ()), Prior(prior.model, prior.seen, 0.5), Prior(mlp((6, 12, 3), seed=1), prior.seen)]
    assert len({prior.digest, *(other.digest for other in others)}) == 4


@pytest.mark.parametrize("arguments", [("x",), (None,), ((1, 2),), ((), -1.0), ((), math.nan)])
def test_bad_priors(prior, parts, arguments):
    with pytest.raises(ValueError, match=r"Prior: (seen|sigma) .*got"):
        Prior(prior.model, *arguments)
    with pytest.raises(ValueError, match=r"Prior: seen .*got"):
        Prior(prior.model, parts.prior)
