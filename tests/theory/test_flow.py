"""The flow in closed form against the integrator, its limits, and the KL between two flows."""

from __future__ import annotations

import pytest
import torch

from stochprune.theory.flow import drift, flow, flow_divergence_bound, orthogonal_flow
from stochprune.theory.linear import LinearModel, bernoulli_moments, mean_moments, straight_through_gradient


def orthogonal(generator, n=12, d=5, w=None):
    basis, _ = torch.linalg.qr(torch.randn(n, d, generator=generator, dtype=torch.float64))
    sizes = 0.5 + torch.rand(d, generator=generator, dtype=torch.float64)
    y = 3 * torch.randn(n, generator=generator, dtype=torch.float64)
    if w is None:
        w = torch.randn(d, generator=generator, dtype=torch.float64)
    return LinearModel(basis * sizes * n**0.5, y, w)


def test_the_closed_form_is_the_flow(generator):
    model = orthogonal(generator)
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    times = torch.tensor([0.0, 0.1, 1.0, 10.0, 100.0], dtype=torch.float64)
    closed = orthogonal_flow(start, drift(model), times)
    torch.testing.assert_close(closed, flow(model, start, times, bernoulli_moments), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(closed[0], start, rtol=1e-14, atol=1e-14)


def test_the_closed_form_solves_its_equation_at_any_size():
    target = torch.tensor([0.0, 1e-12, 1.0, -30.0, 1e6, -1e12], dtype=torch.float64)
    phi = orthogonal_flow(torch.zeros(6, dtype=torch.float64), target, torch.ones(1, dtype=torch.float64))[0]
    torch.testing.assert_close(2 * phi + 2 * torch.sinh(phi), target, rtol=1e-12, atol=1e-15)


def test_features_that_are_not_aligned_are_pruned(generator):
    model = orthogonal(generator)
    late = orthogonal_flow(torch.zeros(5, dtype=torch.float64), drift(model), torch.tensor([1e9]).double())[0]
    aligned = model.w * (model.x.mT @ model.y) > model.sizes * model.w.square() / 2
    assert 0 < aligned.sum() < 5
    assert torch.equal(late > 0, aligned) and late.abs().min() > 10


def test_straight_through_stops_between_0_and_1(generator):
    """If the labels are those of a fraction of a weight, the loss of the mean network is smallest at this fraction."""
    model = orthogonal(generator)
    part = torch.tensor([0.2, 0.5, 0.8, 0.9, 0.1], dtype=torch.float64)
    model = LinearModel(model.x, model.x @ part, torch.ones_like(part))
    assert straight_through_gradient(model, part).abs().max() < 1e-12
    path = flow(model, torch.zeros(5).double(), torch.tensor([1.0, 10.0, 100.0]).double(), mean_moments)
    left = (torch.sigmoid(path) - part).abs()
    assert (left[1:] <= left[:-1] + 1e-9).all() and left[2].max() < left[0].max() / 2


@pytest.mark.parametrize("time", [0.1, 1.0, 10.0, 300.0])
def test_the_kl_of_two_flows_is_bounded(time, generator):
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    prior = orthogonal(generator)
    for _ in range(20):
        posterior = orthogonal(generator, w=prior.w)
        at = torch.tensor([time], dtype=torch.float64)
        q, p = (orthogonal_flow(start, drift(m), at)[0] for m in (posterior, prior))
        smooth = torch.sigmoid(q)
        kl = (smooth * (q - p) + torch.nn.functional.softplus(p) - torch.nn.functional.softplus(q)).sum()
        assert 0 < kl <= flow_divergence_bound(prior, posterior, time)


def test_the_bound_is_tight_for_short_times(generator):
    """At logits near 0 both inequalities of the proof are equalities to first order."""
    prior = orthogonal(generator)
    posterior = orthogonal(generator, w=prior.w)
    start, at = torch.zeros(5, dtype=torch.float64), torch.tensor([1e-3], dtype=torch.float64)
    q, p = (orthogonal_flow(start, drift(m), at)[0] for m in (posterior, prior))
    kl = (q - p).square().sum() / 8
    assert flow_divergence_bound(prior, posterior, 1e-3) == pytest.approx(kl.item(), rel=1e-5)


def test_bad_input(generator):
    model = orthogonal(generator)
    with pytest.raises(ValueError, match=r"times.*got"):
        flow(model, torch.zeros(5).double(), torch.tensor([1.0, 1.0]).double(), bernoulli_moments)
    with pytest.raises(ValueError, match=r"prior and posterior.*weights"):
        flow_divergence_bound(model, orthogonal(generator), 1.0)
