"""Stochastic gradient descent on copies of a model's parameters, optionally differentiable."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from stochprune.data.batch_loss import BatchLoss
from stochprune.nn import masked_layers
from stochprune.scores._common import Examples, gradient_at

Values = dict[Tensor, Tensor]


def starting_point(model: nn.Module) -> Values:
    """Return copies of all trainable parameters, without the logits of masked layers."""
    logits = {id(layer.mask_logits) for layer in masked_layers(model).values()}
    return {p: p.detach().clone() for p in model.parameters() if id(p) not in logits}


def descend(
    model: nn.Module,
    loss: BatchLoss,
    batches: Examples,
    values: Mapping[Tensor, Tensor],
    *,
    lr: float,
    momentum: float = 0.0,
    create_graph: bool = False,
    masks: Mapping[Tensor, Tensor] | None = None,
    see: Callable[[Mapping[Tensor, Tensor]], None] | None = None,
) -> Values:
    """Make one step per batch from ``values`` (by parameter of the model) and return the new values.

    Momentum is that of torch: ``v <- momentum v + g`` (the first v is g), ``theta <- theta - lr v``. Nothing is changed
    in place.

    Args:
        create_graph: make the result differentiable with respect to ``values``, through gradients and momentum;
            ``values`` must then require gradients.
        masks: by parameter; pruned entries are 0 after each step.
        see: called with the gradients of each step, by parameter.
    """
    theta = dict(values)
    velocity: Values = {}
    for number, batch in enumerate(batches):
        if not create_graph:
            theta = {parameter: value.detach().requires_grad_() for parameter, value in theta.items()}
        found = gradient_at(model, loss, theta, batch, number, create_graph=create_graph)
        grads = dict(zip(theta, found, strict=True))
        if see is not None:
            see(grads)
        with torch.set_grad_enabled(create_graph):
            velocity = {p: momentum * velocity[p] + g if velocity else g for p, g in grads.items()}
            theta = {p: value - lr * velocity[p] for p, value in theta.items()}
            for parameter, mask in (masks or {}).items():
                theta[parameter] = theta[parameter] * mask
    return theta


def check_descent(score: str, *, lr: float, momentum: float = 0.0) -> None:
    """Raise ``ValueError`` if the learning rate is not positive or the momentum is outside [0, 1)."""
    if not lr > 0:
        raise ValueError(f"{score}: lr must be positive, got {lr}")
    if not 0 <= momentum < 1:
        raise ValueError(f"{score}: momentum must lie in [0, 1), got {momentum}")
