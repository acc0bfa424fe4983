"""The linear model under random masks: expected losses, gradients and the regularisers they contain, in closed form.

The model has labels y in R^n, features x_i in R^n (the columns of x), fixed weights w and independent masks d_i of mean
q_i. The loss is ``L = E |y - x (d * w)|^2 / (2 n)``. The model is that of Hayou, He and Dziugaite 2021 (arXiv
2110.11804). We derived the formulas, and every statement below has a test.

Write a = q * w for the mean weights and s_i = |x_i|^2.

- ``2 n L = |y - x a|^2 + sum_i s_i q_i (1 - q_i) w_i^2`` for Bernoulli masks.
- If w is fixed and q is trained, the last term is ``sum_i s_i (|w_i| |a_i| - a_i^2)``, an L1 penalty that adapts to the
  data. If q is fixed and w is trained (dropout), it is ``sum_i s_i (1 - q_i) / q_i a_i^2``, an adaptive L2 penalty
  (Wager, Wang and Liang 2013, arXiv 1307.1493).
- L is affine in each q_i. So there is a best q that is a mask: no vector of probabilities has a smaller loss than the
  best subset of the features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stochprune import rng

Moments = tuple[Tensor, Tensor]
"""Mean and variance [d] of independent masks."""


@dataclass(frozen=True)
class LinearModel:
    """A regression problem with fixed weights.

    Attributes:
        x: float64 [n, d], features in columns.
        y: float64 [n], labels.
        w: float64 [d], weights.

    Raises:
        ValueError: shapes that do not fit, no examples, another dtype, or a value that is not finite.
    """

    x: Tensor
    y: Tensor
    w: Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.x.shape), tuple(self.y.shape), tuple(self.w.shape)
        if self.x.ndim != 2 or shapes[1:] != (shapes[0][:1], shapes[0][1:]) or not self.x.numel():
            raise ValueError(f"x must be [n, d], y [n] and w [d], got {', '.join(map(str, shapes))}")
        for name, tensor in (("x", self.x), ("y", self.y), ("w", self.w)):
            if tensor.dtype != torch.float64 or not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} must hold finite float64 numbers, got {tensor.dtype}")

    @property
    def sizes(self) -> Tensor:
        """s [d], the squared norms of the features."""
        return self.x.square().sum(0)

    @property
    def alignment(self) -> Tensor:
        """<x_i, y> / n [d], the alignment of each feature with the labels."""
        return self.x.mT @ self.y / len(self.y)

    def predict(self, masks: Tensor) -> Tensor:
        """Outputs [..., n] under masks [..., d]."""
        return (masks * self.w) @ self.x.mT


def bernoulli_moments(logits: Tensor) -> Moments:
    """Return the moments of hard masks: mean q = sigmoid(logits), variance q (1 - q)."""
    q = torch.sigmoid(logits)
    return q, q * torch.sigmoid(-logits)


def mean_moments(logits: Tensor) -> Moments:
    """Return the moments of the mean network; straight-through follows its loss (:func:`straight_through_gradient`)."""
    q = torch.sigmoid(logits)
    return q, torch.zeros_like(q)


def concrete_moments(logits: Tensor, temperature: float, points: int = rng.LEVELS) -> Moments:
    """Return the moments of binary concrete masks: mean and variance over ``points`` equally likely uniforms.

    With the default, all 32768 uniforms of the mask contract, they are the moments of the masks of
    :func:`masked_linear`.
    """
    v = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    z = torch.sigmoid((logits[..., None] - torch.logit(v)) / temperature)  # [d, points]
    mean = z.mean(-1)
    return mean, (z - mean[..., None]).square().mean(-1)


def expected_loss(model: LinearModel, moments: Moments) -> Tensor:
    """Return E |y - x (d * w)|^2 / (2 n) for independent masks of any distribution, from mean and variance [d]."""
    mean, variance = moments
    residual = model.y - model.predict(mean)
    return (residual.square().sum() + (model.sizes * variance * model.w.square()).sum()) / (2 * len(model.y))


def gradient(model: LinearModel, q: Tensor) -> Tensor:
    """Return dL/dq [d]: ``(-w_i <x_i, r_i> + s_i w_i^2 / 2) / n`` with r_i = y - sum_{j != i} q_j w_j x_j."""
    aligned = model.x.mT @ (model.y - model.predict(q)) + model.sizes * q * model.w  # [d]: <x_i, r_i>
    return (-model.w * aligned + model.sizes * model.w.square() / 2) / len(model.y)


def straight_through_gradient(model: LinearModel, q: Tensor) -> Tensor:
    """Return the mean over masks of the straight-through gradient for q [d]: ``-w_i <x_i, y - x a> / n``.

    It is the gradient of the loss of the mean network: s_i q_i w_i^2 replaces s_i w_i^2 / 2 of :func:`gradient`. So
    straight-through does not see the variance. It stops at probabilities inside (0, 1), although the expected loss is
    smallest at a mask.
    """
    return -model.w * (model.x.mT @ (model.y - model.predict(q))) / len(model.y)


def mask_penalty(model: LinearModel, a: Tensor) -> Tensor:
    """Return ``sum_i s_i (|w_i| |a_i| - a_i^2)``, which trained q add to |y - x a|^2, for |a_i| <= |w_i|."""
    return (model.sizes * (model.w.abs() * a.abs() - a.square())).sum()


def dropout_penalty(model: LinearModel, a: Tensor, q: Tensor | float) -> Tensor:
    """Return ``sum_i s_i (1 - q_i) / q_i a_i^2``, which dropout adds to |y - x a|^2; a are the trained mean weights."""
    return (model.sizes * (1 - q) / q * a.square()).sum()


def dropout_solution(model: LinearModel, q: float) -> Tensor:
    """Return the mean weights [d] that minimise |y - x a|^2 + :func:`dropout_penalty` at one q, a ridge solution."""
    gram = model.x.mT @ model.x
    return torch.linalg.solve(gram + torch.diag(model.sizes * (1 - q) / q), model.x.mT @ model.y)


def best_mask(model: LinearModel) -> Tensor:
    """Return bool [d]: the subset of smallest loss among all 2^d.

    Raises:
        ValueError: more than 20 features.
    """
    d = len(model.w)
    if d > 20:
        raise ValueError(f"best_mask enumerates all masks and needs at most 20 features, got {d}")
    gram = (model.x * model.w).mT @ (model.x * model.w)
    masks = all_masks(d)
    losses = ((masks @ gram) * masks).sum(1) / 2 - masks @ (model.w * (model.x.mT @ model.y))
    return masks[losses.argmin()].bool()


def all_masks(d: int) -> Tensor:
    """Return all masks, float64 [2^d, d]."""
    return ((torch.arange(1 << d)[:, None] >> torch.arange(d)) & 1).double()
