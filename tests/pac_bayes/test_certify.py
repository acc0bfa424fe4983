"""Certificates: what is estimated, resumed, refused, and verified from the file."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

from stochprune import bounds
from stochprune.data.splits import split
from stochprune.models import mlp
from stochprune.models.initialise import initialised
from stochprune.nn import convert, gate_branches, masked_layers
from stochprune.pac_bayes import (
    CertifyConfig,
    Prior,
    PriorConfig,
    certify,
    load_certificate,
    make_posterior,
    train_prior,
)
from stochprune.pac_bayes.certify import draw_loss, mean_loss
from stochprune.training import CheckpointError
from tests.pac_bayes.conftest import Stop, make_prior, make_split

QUICK = CertifyConfig(draws=60, draw_examples=20)
TRIED = 2
"""Number of forward passes of whole batches in a trial, see ``trial.py``."""


@pytest.fixture
def posterior(prior):
    return make_posterior(prior, "masks")


@pytest.mark.parametrize("loss", ["zero_one", "cross_entropy"])
def test_draws_estimate_the_enumerated_risk(loss):
    """A last layer of 2 x 2 random weights: the risk over all 16 masks, and 1,000 draws."""
    parts = make_split(120)
    x, y = parts.certify.x[:, :2], (parts.certify.y > 0).long()
    part = dataclasses.replace(parts.certify, x=x, y=y)
    linear = torch.nn.utils.skip_init(torch.nn.Linear, 2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, -0.5], [0.3, 2.0]]))
        linear.bias.zero_()
    prior = Prior(convert(torch.nn.Sequential(linear), keep_kept=0.7, seed=0), ())
    posterior = make_posterior(prior, "masks")
    expected = 0.0
    for bits in itertools.product((0, 1), repeat=4):
        mask = torch.tensor(bits).view(2, 2)
        outputs = (x @ (linear.weight * mask).T).detach().double()
        if loss == "zero_one":
            value = (outputs.argmax(1) != y).double().mean()
        else:
            value = (outputs.logsumexp(1) - outputs[torch.arange(len(y)), y]).clamp_max(
                math.log(1e4)
            ).mean() / math.log(1e4)
        expected += value.item() * math.prod(0.7 if bit else 0.3 for bit in bits)
    for examples in (0, 7):
        config = CertifyConfig(draws=1000, draw_examples=examples, loss=loss)
        certificate = certify(posterior, part, config)
        values = np.array(certificate.losses) * certificate.unit
        assert certificate.mean_loss == pytest.approx(expected, abs=4.5 * values.std() / math.sqrt(1000))
        assert expected < certificate.empirical_risk < certificate.bound


@pytest.mark.parametrize("monte_carlo", ["betting", "kl"])
def test_the_bound_from_its_account(posterior, parts, monte_carlo):
    config = dataclasses.replace(QUICK, monte_carlo=monte_carlo)
    found = certify(posterior, parts.certify, config, priors=3, posteriors=2)
    values = np.array(found.losses) / 20
    if monte_carlo == "kl":
        risk = bounds.kl_inverse(values.mean(), math.log(2 * 2 / 0.01) / 60)
    else:
        risk = bounds.betting(values, 0.01 / 2)
    assert found.empirical_risk == pytest.approx(risk, abs=1e-9)
    kl = sum(value.item() for value in posterior.kl().values())
    right = (kl + math.log(2 * math.sqrt(200) * 3 / 0.025)) / 200
    assert found.bound == pytest.approx(bounds.kl_inverse(found.empirical_risk, right), abs=1e-9)


def test_the_kl_is_that_of_the_present_logits(posterior, parts):
    """A forward that records gradients forms the KL too; a change through ``.data`` leaves no trace but the values."""
    posterior(parts.certify.x[:4])
    for tensor, _ in posterior.curvatures():
        tensor.data.sub_(1)
    found = certify(posterior, parts.certify, QUICK)
    assert (
        found.total_kl == pytest.approx(sum(value.item() for value in posterior.kl().values())) and found.total_kl > 1
    )


def test_draws_are_new_to_the_training(posterior, parts):
    seeds = {certify(posterior, parts.certify, QUICK, seed=seed).mask_seed for seed in range(4)}
    assert len(seeds) == 4 and not seeds & {0, 1, 2, 3}


def test_a_killed_run_goes_on(posterior, parts, tmp_path):
    class Killer:
        def on_draws(self, done: int, total: int, bound: float) -> None:
            if done == 30:
                raise Stop

    whole = certify(posterior, parts.certify, QUICK)
    with pytest.raises(Stop):
        certify(posterior, parts.certify, QUICK, folder=tmp_path, callbacks=[Killer()])
    calls = []
    forward = posterior.model.forward
    posterior.model.forward = lambda x: calls.append(len(x)) or forward(x)
    assert certify(posterior, parts.certify, QUICK, folder=tmp_path) == whole
    assert calls.count(20) == TRIED + 30
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt.*another run"):
        certify(posterior, parts.certify, QUICK, folder=tmp_path, posteriors=2)


def test_draws_of_a_network_with_another_activation_are_refused(parts, tmp_path):
    def network(activation: nn.Module) -> nn.Module:
        return convert(initialised(lambda: nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 3)), 0))

    for activation in (nn.ReLU(), nn.Tanh()):
        posterior = make_posterior(Prior(network(activation), ()), "masks")
        if isinstance(activation, nn.Tanh):
            with pytest.raises(CheckpointError, match="another run"):
                certify(posterior, parts.certify, QUICK, folder=tmp_path)
        else:
            certify(posterior, parts.certify, QUICK, folder=tmp_path)


@pytest.mark.parametrize("family", ["masks", "gaussian", "spike_and_slab"])
@pytest.mark.parametrize("loss", ["zero_one", "cross_entropy"])
def test_draws_that_share_a_forward_are_those_of_single_ones(prior, parts, family, loss, monkeypatch):
    posterior = make_posterior(prior, family)
    config = CertifyConfig(draws=503, draw_examples=20, loss=loss)
    calls = []
    posterior.model.register_forward_hook(lambda module, args, y: calls.append(len(y)))
    together = certify(posterior, parts.certify, config)
    assert calls.count(8 * 20) == 1 + 503 // 8 and calls.count(7 * 20) == 1  # one to see whether the network takes it
    repeated = [draw_loss(posterior, parts.certify, together, t) for t in (0, 7, 8, 502)]
    assert repeated == [together.losses[t] for t in (0, 7, 8, 502)]
    monkeypatch.setattr(sys.modules[certify.__module__], "_BATCH", 20)
    calls.clear()
    alone = certify(posterior, parts.certify, config)
    assert calls.count(20) == TRIED + 503
    # a cross-entropy, in millionths, may round otherwise
    np.testing.assert_allclose(together.losses, alone.losses, atol=0 if loss == "zero_one" else 1)
    assert len(set(alone.losses)) > 5


@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 3), (3, 8)])
def test_a_run_goes_on_with_other_numbers_of_draws_together(posterior, parts, tmp_path, before, after, monkeypatch):
    class Pauses:
        def __init__(self, stop: bool) -> None:
            self.seen, self.stop = [], stop

        def on_draws(self, done: int, total: int, bound: float) -> None:
            self.seen.append(done)
            if self.stop and done >= 50:
                raise Stop

    config = CertifyConfig(draws=1000, draw_examples=20)
    whole = certify(posterior, parts.certify, config)
    draws = sys.modules[certify.__module__].DRAWS
    monkeypatch.setitem(draws, "cpu", before)
    with pytest.raises(Stop):
        certify(posterior, parts.certify, config, folder=tmp_path, callbacks=[Pauses(True)])
    monkeypatch.setitem(draws, "cpu", after)
    pauses = Pauses(False)
    assert certify(posterior, parts.certify, config, folder=tmp_path, callbacks=[pauses]) == whole
    assert len(pauses.seen) > 30 and pauses.seen[-1] == 1000


class Positions(nn.Module):
    """A network with a layer that does not see the batch."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.table, self.model = nn.Embedding(length, 4), mlp((4, 6, 3), seed=0)

    def forward(self, x):
        return self.model((x + self.table(torch.arange(x.shape[1]))).flatten(0, 1)).view(*x.shape[:2], 3).mean(1)


class TimeFirst(nn.Module):
    """A network whose layers see time before the batch, by themselves or in one dimension."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat, self.fc, self.head = flat, nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = x.transpose(0, 1)
        x = self.fc(x.flatten(0, 1)).unflatten(0, x.shape[:2]) if self.flat else self.fc(x)
        return self.head(x.tanh().mean(0))


@pytest.mark.parametrize(
    ("construct", "length"),
    [
        (lambda: Positions(3), 3),
        (lambda: Positions(160), 160),  # as many as a forward has examples
        (lambda: TimeFirst(False), 3),
        (lambda: TimeFirst(False), 160),
        (lambda: TimeFirst(True), 3),
    ],
)
def test_networks_that_would_be_mixed_take_one_draw_at_a_time(construct, length):
    numbers = torch.Generator().manual_seed(0)
    x, y = torch.randn(100, length, 4, generator=numbers), torch.randint(0, 3, (100,), generator=numbers)
    model = convert(initialised(construct, 0), include="*", keep_kept=0.8)
    posterior, part = make_posterior(Prior(model, ()), "masks"), split(x, y, 0.0).certify
    outputs = []
    posterior.model.register_forward_hook(lambda module, args, y: outputs.append(len(y)))
    certify(posterior, part, CertifyConfig(draws=403, draw_examples=20))
    drawn = [count for count in outputs if count != 1]  # the last are those of the trial, alone
    assert drawn[-403:] == [20] * 403
    outputs.clear()
    mean_loss(posterior, x, y, 2, 0)
    assert outputs == [100] * 2


def test_gates_share_a_forward(parts):
    model = gate_branches(convert(mlp((6, 12, 3), seed=0), keep_kept=0.8), "fc1", keep=0.7)
    posterior, outputs = make_posterior(Prior(model, ()), "masks"), []
    posterior.model.register_forward_hook(lambda module, args, y: outputs.append(len(y)))
    certify(posterior, parts.certify, CertifyConfig(draws=400, draw_examples=20))
    assert [count for count in outputs if count != 1][-50:] == [160] * 50


def test_a_posterior_stays_in_evaluation_mode(parts):
    model = convert(nn.Sequential(mlp((6, 12), seed=0), nn.BatchNorm1d(12), mlp((12, 3), seed=1)), include="0.*")
    posterior = make_posterior(Prior(model, ()), "masks")
    whole = certify(posterior, parts.certify, QUICK)
    posterior.train()
    assert not posterior.model[1].training
    posterior.model.train()
    assert certify(posterior, parts.certify, QUICK) == whole


def test_seen_examples_are_refused(posterior, parts):
    with pytest.raises(ValueError, match="seen by the prior"):
        certify(posterior, parts.prior, QUICK)
    choice, rest = parts.certify.split(0.1, 0, "choice")
    chosen = make_posterior(Prior(posterior.prior.model, (parts.prior, choice)), "masks")
    with pytest.raises(ValueError, match="20 of the 200 examples"):
        certify(chosen, parts.certify, QUICK)
    assert certify(chosen, rest, QUICK).prior_saw == [parts.prior.digest, choice.digest]


@pytest.mark.parametrize("name", ["priors", "posteriors"])
@pytest.mark.parametrize("count", [0, -1, 1.5, math.nan, "2", True, None])
def test_bad_counts(posterior, parts, name, count):
    with pytest.raises((ValueError, TypeError), match=rf"certify: {name} .*got {re.escape(repr(count))}"):
        certify(posterior, parts.certify, QUICK, **{name: count})


def test_a_network_that_gives_nan_is_wrong(parts):
    prior = make_prior(parts, prior_epochs=1)
    with torch.no_grad():
        masked_layers(prior.model)["fc2.weight"].weight.fill_(math.nan)
    posterior = make_posterior(Prior(prior.model, prior.seen), "masks")
    for loss in ("zero_one", "cross_entropy"):
        assert certify(posterior, parts.certify, dataclasses.replace(QUICK, loss=loss)).bound == 1.0


class Twice(nn.Module):
    """A network that runs one layer twice."""

    def __init__(self):
        super().__init__()
        self.fc = mlp((6, 6), seed=0)
        self.head = mlp((6, 3), seed=1)

    def forward(self, x):
        return self.head(self.fc(self.fc(x).relu()))


def test_a_layer_that_runs_twice_is_refused(parts):
    """It would sample two masks, and its KL would count one."""
    prior = train_prior(Twice(), parts.prior, PriorConfig(prior_epochs=1))
    with pytest.raises(ValueError, match=r"fc\..*weight .*\b2\b"):
        certify(make_posterior(prior, "masks"), parts.certify, QUICK)


class TestFile:
    @pytest.fixture
    def path(self, posterior, parts, tmp_path):
        certify(posterior, parts.certify, QUICK).save(tmp_path / "c.json")
        return tmp_path / "c.json"

    def test_round_trip(self, path, posterior, parts):
        assert load_certificate(path) == certify(posterior, parts.certify, QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws.*got 0"),
        ({"delta": 0.0}, "delta.*got 0.0"),
        ({"delta": 0.6, "delta_draws": 0.5}, "delta . delta_draws.*got 1.1"),
        ({"monte_carlo": "hope"}, "monte_carlo.*got 'hope'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        CertifyConfig(**options)
