"""Validity by simulation: over many samples of a world whose risks are known, certificates fail as rarely as they say,
for every bound and objective; and bounds that leave something out fail the same test."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from stochprune import bounds
from stochprune.seeding import generator
from tests.pac_bayes.world import BOUNDS, BROKEN, DELTA, DELTA_DRAWS, OBJECTIVES, World, divergence, learn, violations

M, REPETITIONS = 40, 1000


@pytest.fixture(scope="module")
def world() -> World:
    return World.make()


@pytest.fixture(scope="module", params=OBJECTIVES)
def learnt(request, world):
    empirical = world.samples(REPETITIONS, M, seed=1)
    return empirical, learn(world, empirical, M, request.param)


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_bounds_hold(bound, world, learnt):
    assert violations(world, *learnt, M, bound) <= DELTA


@pytest.fixture(scope="module")
def trap() -> tuple[World, torch.Tensor, list[torch.Tensor]]:
    """Random labels and 4,096 masks to fit them: return the samples, and two posteriors for each."""
    world = World.make(weights=12, noise=0.5)
    empirical = world.samples(REPETITIONS, 20, seed=1)
    prior = torch.zeros(REPETITIONS, 12, dtype=torch.float64)
    return world, empirical, [prior, learn(world, empirical, 20, "greedy")]


@pytest.mark.parametrize("bound", [*BOUNDS.values(), *BROKEN.values()], ids=[*BOUNDS, *BROKEN])
def test_broken_bounds_are_found(bound, trap):
    world, empirical, posteriors = trap
    worst = max(violations(world, empirical, logits, 20, bound) for logits in posteriors)
    assert (worst > DELTA) == (bound in BROKEN.values())


def certificates(world: World, empirical: torch.Tensor, logits: torch.Tensor, draws: int, estimate) -> list[bool]:
    """Return whether each certificate fails. Each draw estimates the empirical risk by one mask on 8 examples."""
    numbers, truth = generator(5, "draws", draws), (world.posterior(logits) @ world.risk).tolist()
    keep = torch.sigmoid(logits).numpy()
    powers = 2 ** np.arange(keep.shape[1])[::-1]
    failed = []
    for q, risks, kl, true in zip(keep, empirical.numpy(), _divergences(logits), truth, strict=True):
        drawn = (numbers.random((draws, len(q))) < q) @ powers  # the numbers of the masks
        losses = numbers.binomial(8, np.clip(risks[drawn], 0, 1)) / 8
        failed.append(true > bounds.maurer(estimate(losses), kl, M, DELTA))
    return failed


def _divergences(logits: torch.Tensor) -> list[float]:
    return divergence(logits, 0.5).clamp_min(0).tolist()


ESTIMATES = {
    "betting": lambda losses: bounds.betting(losses, DELTA_DRAWS),
    "kl": lambda losses: bounds.monte_carlo(losses.mean(), len(losses), DELTA_DRAWS),
}


@pytest.mark.parametrize("estimate", ESTIMATES.values(), ids=ESTIMATES)
def test_certificates_from_draws_hold(estimate, world, learnt):
    assert np.mean(certificates(world, *learnt, 30, estimate)) <= DELTA + DELTA_DRAWS


def test_choosing_the_best_prior_needs_its_union_bound(world):
    """Sixty data-free priors, each a point mass: certify the best on the sample, with and without the union."""
    numbers = generator(6, "priors")
    empirical = world.samples(REPETITIONS, M, seed=2)
    broken, counted = 0, 0
    for risks in empirical.numpy():
        chosen = numbers.choice(len(risks), 60, replace=False)
        best = chosen[np.argmin(risks[chosen])]
        truth = world.risk[best].item()
        broken += truth > bounds.kl_inverse(risks[best], np.log(1 / DELTA) / M)
        counted += truth > bounds.chernoff(risks[best], M, DELTA, choices=60)
    assert counted <= DELTA * REPETITIONS < broken


@pytest.mark.slow
@pytest.mark.parametrize(("m", "noise"), [*itertools.product((10, 30, 100, 400), (0.5, 0.2, 0.0))])
def test_bounds_hold_everywhere(m, noise):
    world = World.make(weights=8, noise=noise, seed=m)
    empirical = world.samples(3000, m, seed=m)
    for objective in OBJECTIVES:
        logits = learn(world, empirical, m, objective)
        for name, bound in BOUNDS.items():
            assert violations(world, empirical, logits, m, bound) <= DELTA, (objective, name)
