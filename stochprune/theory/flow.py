"""Gradient flow of the logits of a linear model's masks, and the KL between a prior and a posterior that follow it.

With orthogonal features the weights are not coupled: ``-dL/dq_i = c_i = (w_i <x_i, y> - s_i w_i^2 / 2) / n`` for every
q. The logit satisfies ``dphi/dt = q (1 - q) c_i = c_i / (2 + 2 cosh phi)``, so ``2 phi + 2 sinh phi`` grows at the
constant rate c_i. Hence q_i tends to 1 if ``w_i <x_i, y> > s_i w_i^2 / 2`` and to 0 if it is less: a feature is pruned
unless it is aligned with the labels. (We derived this for the model of Hayou, He and Dziugaite 2021.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stochprune.extras import extra
from stochprune.theory.linear import LinearModel, Moments, expected_loss


def drift(model: LinearModel) -> Tensor:
    """Return c [d], the constant rate of the logits if features are orthogonal."""
    return model.w * model.alignment - model.sizes * model.w.square() / (2 * len(model.y))


def orthogonal_flow(start: Tensor, drift: Tensor, times: Tensor) -> Tensor:
    """Return logits [len(times), d] from ``start`` [d], for orthogonal features: 2 phi + 2 sinh phi = const + c t.

    Newton's method starts from asinh(u / 2), which is beyond the root of 2 phi + 2 sinh phi = u. Between this point and
    the root the function is convex or concave, so the iterates approach the root monotonically.
    """
    target = 2 * start + 2 * torch.sinh(start) + times[:, None] * drift  # [T, d]
    phi = torch.asinh(target / 2)
    for _ in range(50):
        step = (2 * phi + 2 * torch.sinh(phi) - target) / (2 + 2 * torch.cosh(phi))
        phi = phi - step
        if float(step.abs().max()) < 1e-14:
            break
    return phi


def flow(model: LinearModel, start: Tensor, times: Tensor, moments: Callable[[Tensor], Moments]) -> Tensor:
    """Return logits [len(times), d] of dphi/dt = -dL/dphi from ``start`` [d], for the loss of masks with these moments.

    The integration has a relative tolerance of 1e-11 and uses the method of Dormand and Prince of order 8.

    Raises:
        ValueError: times that are negative or do not increase.
        RuntimeError: the integrator failed.
    """
    with extra("studies", "flow"):  # here: scipy takes a second to import
        from scipy.integrate import solve_ivp

    if bool((times < 0).any()) or bool((times.diff() <= 0).any()):
        raise ValueError(f"times must be at least 0 and increase, got {times.tolist()}")

    def rate(_: float, phi: object) -> object:
        logits = torch.as_tensor(phi).requires_grad_()
        (slope,) = torch.autograd.grad(expected_loss(model, moments(logits)), logits)
        return -slope.numpy()

    span = (0.0, float(times[-1]))
    done = solve_ivp(rate, span, start.numpy(), method="DOP853", t_eval=times.numpy(), rtol=1e-11, atol=1e-12)
    if not done.success:
        raise RuntimeError(f"the flow could not be integrated: {done.message}")
    return torch.from_numpy(done.y).mT.contiguous()


def flow_divergence_bound(prior: LinearModel, posterior: LinearModel, time: float) -> float:
    """Return the bound KL(Q || P) <= time^2 / 128 sum_i (c_i - c'_i)^2 in nats, for flows on two orthogonal data sets.

    Q follows the flow on ``posterior`` and P on ``prior``, with the same weights, start and time. As a function of
    u = c t a logit has the slope q (1 - q) <= 1/4, so the two logits differ by |u - u'| / 4 at most. And
    kl(sigmoid(a) || sigmoid(b)) <= (a - b)^2 / 8, because the second derivative of ln(1 + e^x) is at most 1/4. If
    s_i / n is the same in both sets, c - c' is w_i times the change of the feature's alignment with the labels. So the
    KL of a certificate measures how much this alignment differs.

    Raises:
        ValueError: weights that differ.
    """
    if not torch.equal(prior.w, posterior.w):
        raise ValueError("prior and posterior must have the same weights")
    return time**2 / 128 * float((drift(posterior) - drift(prior)).square().sum())
