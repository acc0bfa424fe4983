"""Self-bounded learning."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from stochprune import bounds
from stochprune.models import mlp
from stochprune.models.initialise import initialised
from stochprune.nn import convert
from stochprune.pac_bayes import (
    CertifyConfig,
    Prior,
    PriorConfig,
    SelfBoundConfig,
    certify,
    make_posterior,
    self_bound,
    train_prior,
)
from stochprune.pac_bayes.certify import mean_loss
from stochprune.pac_bayes.families import FAMILIES
from stochprune.training import CheckpointError
from tests.pac_bayes.conftest import Stop, make_prior, make_split

QUICK = SelfBoundConfig(epochs=3, lr=0.3, batch_size=50, checkpoint_every=3)


def total(posterior) -> float:
    return sum(value.item() for value in posterior.kl().values())


LOCAL = "local_reparameterisation"
CASES = [("masks", objective, "straight_through") for objective in ("quadratic", "lambda", "classic", "kl")]
CASES += [("gaussian", "quadratic", "straight_through"), ("spike_and_slab", "kl", "straight_through")]
CASES += [(family, "quadratic", LOCAL) for family in ("masks", "gaussian", "spike_and_slab")]


@pytest.mark.parametrize(("family", "objective", "estimator"), CASES)
def test_every_objective_lowers_the_risk_of_a_poor_prior(family, objective, estimator):
    parts = make_split(2000, 0.03)
    prior = make_prior(parts, prior_epochs=3, keep=0.6, sigma=0.5)
    config = SelfBoundConfig(objective=objective, epochs=3, lr=0.05, batch_size=50, estimator=estimator)
    result = self_bound(prior, parts.certify, config, family=family)
    risks = [
        mean_loss(q, parts.certify.x, parts.certify.y, 10, 0) for q in (make_posterior(prior, family), result.posterior)
    ]
    assert risks[1] < risks[0] - 0.03
    assert 1 < result.history[-1]["kl"] == pytest.approx(total(result.posterior))
    assert result.history[-1]["kl"] == pytest.approx(
        sum(value for key, value in result.history[-1].items() if key.startswith("kl "))
    )
    assert result.history[-1]["loss"] < result.history[0]["loss"]


@pytest.mark.parametrize(
    ("family", "estimator"),
    [("masks", "straight_through"), ("spike_and_slab", "straight_through"), ("masks", LOCAL), ("gaussian", LOCAL)],
)
@pytest.mark.parametrize("surrogate", ["cross_entropy", "soft_zero_one"])
def test_a_killed_run_goes_on_bit_for_bit(family, estimator, surrogate, parts, prior, tmp_path):
    class Killer:
        def on_step(self, state: object) -> None:
            if state.step == 7:
                raise Stop

    lam = dataclasses.replace(QUICK, objective="lambda", estimator=estimator, surrogate=surrogate)
    whole = self_bound(prior, parts.certify, lam, family=family)
    with pytest.raises(Stop):
        self_bound(prior, parts.certify, lam, family=family, out=tmp_path, callbacks=[Killer()])
    resumed = self_bound(prior, parts.certify, lam, family=family, out=tmp_path)
    assert resumed.history == whole.history
    a, b = whole.posterior.state_dict(), resumed.posterior.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert json.loads((resumed.folder / "results.json").read_text())["history"] == whole.history


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("estimator", ["concrete", LOCAL])
def test_a_learnt_posterior_equals_any_with_its_parameters(family, estimator, parts, prior):
    """Risks and certificate are those of any posterior with these parameters, whatever masks the training used."""
    result = self_bound(prior, parts.certify, dataclasses.replace(QUICK, estimator=estimator), family=family)
    plain = make_posterior(prior, family)
    plain.load_state_dict(result.posterior.state_dict())
    x, y = parts.certify.x, parts.certify.y
    assert mean_loss(result.posterior, x, y, 10, 0) == mean_loss(plain, x, y, 10, 0)
    result.posterior.estimate_by(LOCAL)  # as if handed over in the middle of its training
    config = CertifyConfig(draws=20)
    assert certify(result.posterior, parts.certify, config) == certify(plain, parts.certify, config)


@pytest.mark.parametrize(
    ("layer", "options", "kind"),
    [
        (lambda: nn.Embedding(4, 8), {"include": "*"}, "MaskedEmbedding"),
        (lambda: nn.ConvTranspose1d(8, 3, 1), {}, "MaskedConvTranspose1d"),
        (lambda: nn.Linear(8, 4), {"pattern": "2:4"}, "NMMaskedLinear"),
        (lambda: nn.Conv2d(8, 4, 1), {"pattern": "rows"}, "FilterMaskedConv2d"),
    ],
)
def test_layers_without_local_reparameterisation_are_refused(layer, options, kind, parts):
    model = initialised(lambda: nn.Sequential(nn.Linear(6, 3), layer()), 0)
    prior = Prior(convert(convert(model, include="0.*"), **{"include": "1.*", **options}), (parts.prior,))
    with pytest.raises(ValueError, match=rf"local_reparameterisation .*1.weight .*{kind}"):
        self_bound(prior, parts.certify, SelfBoundConfig(estimator=LOCAL))


def test_the_soft_error_gives_a_lower_bound_from_a_random_network():
    """Bounded cross-entropy is small for a network that guesses, so a bound on it has little to gain."""
    parts = make_split(2000, 0.0)
    prior = train_prior(mlp((6, 30, 3), seed=0), None, PriorConfig(prior_fraction=0.0, keep=0.5))
    found = {}
    for surrogate in ("cross_entropy", "soft_zero_one"):
        config = SelfBoundConfig(
            surrogate=surrogate, objective="kl", epochs=4, lr=0.15, batch_size=100, estimator=LOCAL
        )
        result = self_bound(prior, parts.certify, config)
        risk = mean_loss(result.posterior, parts.certify.x, parts.certify.y, 10, 0)
        found[surrogate] = bounds.maurer(risk, total(result.posterior), 2000, 0.025)
    assert found["soft_zero_one"] < found["cross_entropy"] - 0.02, found


def test_other_examples_are_another_run(parts, prior, tmp_path):
    self_bound(prior, parts.certify, QUICK, out=tmp_path)
    half, _ = parts.certify.split(0.5, 0)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt.*another run"):
        self_bound(prior, half, QUICK, out=tmp_path)


def test_a_number_of_a_callback_that_is_not_finite_loses_no_results(parts, prior, tmp_path):
    class Undefined:
        def on_epoch(self, state: object) -> None:
            state.history[-1]["undefined"] = float("nan")

    found = self_bound(prior, parts.certify, QUICK, out=tmp_path, callbacks=[Undefined()])
    stored = json.loads((found.folder / "results.json").read_text())["history"]
    assert [entry["undefined"] for entry in stored] == [None] * 3
    assert [entry["loss"] for entry in stored] == [entry["loss"] for entry in found.history]


def test_seen_examples_are_refused(parts, prior):
    with pytest.raises(ValueError, match="200 of the 200 examples"):
        self_bound(prior, parts.prior, QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "mcallester"}, "objective.*got 'mcallester'"),
        ({"lr": 1.5}, "lr.*got 1.5"),
        ({"p_min": 0.0}, "p_min.*got 0.0"),
        ({"surrogate": "hinge"}, "surrogate.*got 'hinge'"),
        ({"last_softness": 0.0}, "last_softness.*got 0.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SelfBoundConfig(**options)
