"""Self-bounded learning."""

from __future__ import annotations

import json

import pytest
import torch

from stochprune.pac_bayes import SelfBoundConfig, make_posterior, self_bound
from stochprune.pac_bayes.certify import mean_loss
from stochprune.training import CheckpointError
from tests.pac_bayes.conftest import Stop, make_prior, make_split

QUICK = SelfBoundConfig(epochs=3, lr=0.3, batch_size=50, checkpoint_every=3)


def total(posterior) -> float:
    return sum(value.item() for value in posterior.kl().values())


CASES = [("masks", objective) for objective in ("quadratic", "lambda", "classic", "kl")]
CASES += [("gaussian", "quadratic"), ("spike_and_slab", "kl")]


@pytest.mark.parametrize(("family", "objective"), CASES)
def test_every_objective_lowers_the_risk_of_a_poor_prior(family, objective):
    parts = make_split(2000, 0.03)
    prior = make_prior(parts, prior_epochs=3, keep=0.6, sigma=0.5)
    config = SelfBoundConfig(objective=objective, epochs=3, lr=0.05, batch_size=50)
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


@pytest.mark.parametrize("family", ["masks", "spike_and_slab"])
def test_a_killed_run_goes_on_bit_for_bit(family, parts, prior, tmp_path):
    class Killer:
        def on_step(self, state: object) -> None:
            if state.step == 7:
                raise Stop

    lam = SelfBoundConfig(objective="lambda", epochs=3, lr=0.3, batch_size=50, checkpoint_every=3)
    whole = self_bound(prior, parts.certify, lam, family=family)
    with pytest.raises(Stop):
        self_bound(prior, parts.certify, lam, family=family, out=tmp_path, callbacks=[Killer()])
    resumed = self_bound(prior, parts.certify, lam, family=family, out=tmp_path)
    assert resumed.history == whole.history
    a, b = whole.posterior.state_dict(), resumed.posterior.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert json.loads((resumed.folder / "results.json").read_text())["history"] == whole.history


def test_other_examples_are_another_run(parts, prior, tmp_path):
    self_bound(prior, parts.certify, QUICK, out=tmp_path)
    half, _ = parts.certify.split(0.5, 0)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        self_bound(prior, half, QUICK, out=tmp_path)


def test_seen_examples_are_refused(parts, prior):
    with pytest.raises(ValueError, match="200 of the 200 examples of the certificate were seen by the prior"):
        self_bound(prior, parts.prior, QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "mcallester"}, "objective must be one of quadratic, lambda, classic, kl, got 'mcallester'"),
        ({"lr": 1.5}, r"lr must lie in \(0, 1\], got 1.5"),
        ({"p_min": 0.0}, r"p_min must lie in \(0, 0.5\], got 0.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SelfBoundConfig(**options)
