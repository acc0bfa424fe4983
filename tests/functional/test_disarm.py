"""ARM and DisARM are unbiased: exactly over all uniforms for one weight, and by Monte Carlo against enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch

from stochprune import keep_mask, rng
from stochprune.functional import antithetic_gradient

STREAMS = {"a": 3, "b": 4}


def loss_of(masks):
    """A loss without a gradient, in which every mask interacts with every other."""
    kept = torch.cat([m.flatten().double() for m in masks.values()])
    return (kept.cumsum(0).sin() * torch.arange(1, len(kept) + 1)).sum() + (kept.sum() > 2)


def exact_gradient(logits):
    sizes = {name: t.numel() for name, t in logits.items()}
    q = torch.cat([rng.threshold_from_logits(t).int().double().flatten() / 32768 for t in logits.values()])
    gradient = torch.zeros_like(q)
    for bits in itertools.product((False, True), repeat=len(q)):
        m = torch.tensor(bits)
        parts = m.split(list(sizes.values()))
        value = loss_of({name: part.view(logits[name].shape) for name, part in zip(sizes, parts, strict=True)})
        p = torch.where(m, q, 1 - q)
        gradient += value * p.prod() * torch.where(m, 1 - q, -q)  # score function, with dq / dlogit = q (1 - q)
    return gradient


@pytest.mark.parametrize("estimator", ["disarm", "arm"])
def test_mean_is_the_exact_gradient(estimator, generator):
    logits = {"a": torch.randn(1, 3, generator=generator), "b": torch.randn(2, 1, generator=generator)}
    draws = 1500
    estimates = torch.stack(
        [
            torch.cat(
                [
                    g.flatten().double()
                    for g in antithetic_gradient(
                        loss_of, logits, seed=5, draw=d, streams=STREAMS, estimator=estimator
                    ).values()
                ]
            )
            for d in range(draws)
        ]
    )
    error = estimates.mean(0) - exact_gradient(logits)
    assert (error / (estimates.std(0) / draws**0.5)).abs().max() < 4


@pytest.mark.parametrize("logit", [-2.0, 0.3, 4.0])
@pytest.mark.parametrize("estimator", ["disarm", "arm"])
def test_exact_for_one_weight_over_all_uniforms(estimator, logit, monkeypatch):
    """A row of 32,768 weights, one for each uniform, each loss its own: the mean is q (1 - q) (loss(1) - loss(0))."""
    every = torch.arange(32768).view(1, -1)
    monkeypatch.setattr(rng, "uniform16", lambda *a, **k: every)
    monkeypatch.setenv("STOCHPRUNE_BACKEND", "reference")  # which asks that function
    logits = {"a": torch.full((1, 32768), logit, dtype=torch.float64)}
    masks, gap = [], iter((torch.tensor(1.0), torch.tensor(0.0)))  # a gap of 1: the estimate is the weight of the gap
    weight = antithetic_gradient(
        lambda m: masks.append(m["a"]) or next(gap), logits, seed=0, draw=0, streams=STREAMS, estimator=estimator
    )["a"]
    loss = lambda mask: torch.where(mask, 5.0, -3.0)  # noqa: E731  of each weight alone
    value = loss(masks[0]) - loss(masks[1])
    q = float(rng.threshold_from_logits(logits["a"])[0, 0]) / 32768
    assert (value * weight).mean().item() == pytest.approx(q * (1 - q) * 8, rel=1e-9)


def test_the_pair_holds_the_contract_s_mask(generator):
    logits = {"a": torch.randn(6, 70, generator=generator)}
    seen = []
    antithetic_gradient(lambda m: seen.append(m["a"]) or m["a"].sum(), logits, seed=7, draw=8, streams=STREAMS)
    threshold = rng.threshold_from_logits(logits["a"])
    assert torch.equal(seen[0], keep_mask(threshold, seed=7, draw=8, stream=3))
    half = threshold.int() - 16384  # antithetic: of likely weights one mask of the two keeps, of unlikely ones not both
    assert (seen[0] | seen[1])[half >= 0].all() and not (seen[0] & seen[1])[half <= 0].any()


def test_disarm_varies_less_than_arm(generator):
    logits = {"a": torch.randn(1, 3, generator=generator), "b": torch.randn(2, 1, generator=generator)}
    spread = {}
    for estimator in ("disarm", "arm"):
        values = [
            antithetic_gradient(loss_of, logits, seed=5, draw=d, streams=STREAMS, estimator=estimator)["a"]
            for d in range(400)
        ]
        spread[estimator] = torch.stack(values).var(0).sum()
    assert spread["disarm"] < spread["arm"]


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"estimator": "reinforce"}, ValueError, "estimator.*'reinforce'.*disarm, arm"),
        ({"streams": {}}, ValueError, "stream.*'a'"),
        ({"logits": {"a": torch.ones(2, dtype=torch.int64)}}, TypeError, "'a'.*int64"),
        ({"loss": lambda m: torch.ones(2)}, ValueError, r"got shape \(2,\)"),
        ({"loss": lambda m: torch.tensor(float("nan"))}, ValueError, "got nan"),
        ({"draw": -1}, ValueError, "draw.*got -1"),
    ],
)
def test_bad_input(change, error, message):
    given = {"loss": loss_of, "logits": {"a": torch.ones(2, 2)}, "seed": 1, "draw": 2, "streams": STREAMS, **change}
    with pytest.raises(error, match=message):
        antithetic_gradient(**given)
