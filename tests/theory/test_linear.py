"""The identities of the linear model, each against enumeration of all masks or autograd, to 1e-10."""

from __future__ import annotations

import pytest
import torch

from stochprune.functional import masked_linear
from stochprune.theory import linear
from stochprune.theory.linear import LinearModel, all_masks, bernoulli_moments, expected_loss

TIGHT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture
def model(generator):
    x, y, w = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((15, 6), (15,), (6,)))
    return LinearModel(x, y, w)


@pytest.fixture
def logits(generator):
    return torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()


def chances(q, masks):
    return (masks * q + (1 - masks) * (1 - q)).prod(1)


def losses(model, masks):
    return (model.y - model.predict(masks)).square().sum(1) / (2 * len(model.y))


def test_the_expected_loss_is_the_mean_over_all_masks(model, logits):
    masks = all_masks(6)
    mean = chances(torch.sigmoid(logits), masks) @ losses(model, masks)
    torch.testing.assert_close(expected_loss(model, bernoulli_moments(logits)), mean, **TIGHT)


def test_gradient_is_that_of_the_mean_over_all_masks(model, logits):
    q = torch.sigmoid(logits).detach().requires_grad_()
    masks = all_masks(6)
    (expected,) = torch.autograd.grad(chances(q, masks) @ losses(model, masks), q)
    torch.testing.assert_close(linear.gradient(model, q.detach()), expected, **TIGHT)


def test_trained_probabilities_are_an_adaptive_l1_penalty(model, logits):
    q = torch.sigmoid(logits)
    a = q * model.w
    whole = (model.y - model.x @ a).square().sum() + linear.mask_penalty(model, a)
    torch.testing.assert_close(2 * 15 * expected_loss(model, bernoulli_moments(logits)), whole, **TIGHT)


def test_dropout_is_an_adaptive_l2_penalty(model, logits):
    q = torch.sigmoid(logits)
    a = q * model.w
    whole = (model.y - model.x @ a).square().sum() + linear.dropout_penalty(model, a, q)
    torch.testing.assert_close(2 * 15 * expected_loss(model, bernoulli_moments(logits)), whole, **TIGHT)


def test_the_dropout_solution_minimises_the_loss_in_the_weights(model):
    q = 0.7
    w = (linear.dropout_solution(model, q) / q).requires_grad_()
    masks = all_masks(6)
    mean = chances(torch.tensor(q, dtype=torch.float64), masks) @ losses(LinearModel(model.x, model.y, w), masks)
    (slope,) = torch.autograd.grad(mean, w)
    assert slope.abs().max() < 1e-12


def test_no_probabilities_beat_the_best_mask(model, generator):
    best = losses(model, linear.best_mask(model).double()[None])
    torch.testing.assert_close(best, losses(model, all_masks(6)).min()[None], **TIGHT)
    for _ in range(50):
        q = torch.rand(6, generator=generator, dtype=torch.float64)
        assert expected_loss(model, (q, q * (1 - q))) >= best
    i = 3  # affine in each probability: the middle of two values is their mean
    ends = [torch.where(torch.arange(6) == i, end, q) for end in (0.0, 0.5, 1.0)]
    low, middle, high = (expected_loss(model, (e, e * (1 - e))) for e in ends)
    torch.testing.assert_close(middle, (low + high) / 2, **TIGHT)


def test_straight_through_follows_the_loss_of_the_mean_network(model, logits):
    """Averaged over all masks with their probabilities, the op's gradient is that of the loss of the mean."""
    q = torch.sigmoid(logits.detach())
    masks = all_masks(6)
    residual = model.y - model.predict(masks)  # [2^d, n]
    one_by_one = -(residual @ model.x) * model.w / len(model.y)  # [2^d, d]: dL/dmask
    mean = chances(q, masks) @ one_by_one
    torch.testing.assert_close(linear.straight_through_gradient(model, q), mean, **TIGHT)
    (of_mean,) = torch.autograd.grad(expected_loss(model, linear.mean_moments(logits)), logits)
    torch.testing.assert_close(mean * q * (1 - q), of_mean, **TIGHT)


def test_straight_through_gradients_of_the_op_have_that_mean(model, logits):
    draws = 3000
    x, w, logit = (t.float() for t in (model.x, model.w[None], logits[None]))  # the fast backend
    y = masked_linear(x, w, logit, seed=1, draw=0, stream=2, samples=draws)[..., 0]  # [D, n]
    loss = (model.y - y).square().sum() / (2 * 15 * draws)
    (got,) = torch.autograd.grad(loss, logits)
    q = torch.sigmoid(logits.detach())
    expected = linear.straight_through_gradient(model, q) * q * (1 - q)
    assert (got - expected).norm() < 0.1 * expected.norm()


def test_concrete_masks_too_need_but_mean_and_variance(generator):
    """One weight, every uniform of the contract once."""
    x, y = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    model = LinearModel(x[:, None], y, torch.tensor([1.3], dtype=torch.float64))
    v = (torch.arange(32768, dtype=torch.float64) + 0.5) / 32768
    z = torch.sigmoid((0.4 - torch.log(v / (1 - v))) / 0.6)
    expected = losses(model, z[:, None]).mean()
    moments = linear.concrete_moments(torch.tensor([0.4], dtype=torch.float64), 0.6)
    torch.testing.assert_close(expected_loss(model, moments), expected, **TIGHT)


def test_cold_concrete_masks_are_bernoulli(logits):
    cold, hard = linear.concrete_moments(logits, 1e-4), bernoulli_moments(logits)
    for a, b in zip(cold, hard, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_bad_input():
    one = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"x.*got \(3, 3\), \(3,\), \(2,\)"):
        LinearModel(torch.eye(3, dtype=torch.float64), one, one[:2])
    with pytest.raises(ValueError, match=r"\by\b.*float64"):
        LinearModel(torch.eye(3, dtype=torch.float64), one * float("nan"), one)
    with pytest.raises(ValueError, match=r"\b20\b.*\b21\b"):
        linear.best_mask(LinearModel(*(torch.ones(s, dtype=torch.float64) for s in ((2, 21), (2,), (21,)))))
