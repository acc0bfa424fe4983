"""ProsPr, prospect pruning: scores from the loss after the first steps of training."""

from __future__ import annotations

from itertools import cycle, islice

import torch
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.data.batch_loss import count_examples
from stochprune.nn.selection import Selectors
from stochprune.scores._common import (
    Data,
    Loss,
    all_finite,
    gradient_at,
    mean_over_examples,
    needed,
    scored_weights,
    wide,
)
from stochprune.scores._sgd import check_descent, descend, starting_point


@checked
def prospr(
    model: nn.Module,
    loss_fn: Loss = None,
    batches: Data = None,
    *,
    steps: int = 3,
    lr: float = 0.5,
    momentum: float = 0.9,
    first_order: bool = False,
    structured: bool = False,
    include: Selectors | None = None,
    exclude: Selectors | None = None,
) -> dict[str, Tensor]:
    """Return ``|dL(theta_M) / dc|`` at c = 1, where theta_M is the result of M steps of SGD from the weights w c.

    The steps change all parameters. The derivative goes through all steps, with their second order and momentum. The
    masks are for the weights before the steps, not for theta_M. Alizadeh, Tailor, Zintgraf, van Amersfoort, Farquhar,
    Lane and Gal 2022, "Prospect pruning: finding trainable weights at initialization using meta-gradients" (arXiv
    2202.08132), algorithm 1. The authors' released code treats the first momentum buffer as a constant, and so leaves
    out a part of the derivative. With momentum its masks are therefore others (docs/results/prospr.md).

    Args:
        loss_fn: as for :func:`snip`.
        batches: the first M batches are used in the steps, one each, and the next one in the final loss. If there are
            fewer, they are repeated from the first. Under a process group each rank makes its own steps on its own
            batches, and the derivatives are averaged.
        steps: M. With 0 the score is that of SNIP on the first batch.
        lr, momentum: hyper-parameters of the steps.
        first_order: return ``|w dL/dtheta_M|``, as if theta_M moved with the start one to one. This needs no second
            derivatives and memory for one step only.
        structured: use one c for each output channel (the first dimension of a weight, which is the input channel of a
            transposed convolution), in every layer but the last, whose outputs are the classes.
        include, exclude: as in :func:`prunable_weights`.

    Returns:
        By weight name, a tensor of the weight's shape, or [C_out, 1, ...] if structured
        (:func:`stochprune.masks.expand` turns such masks of channels into masks of weights); float64 if the weight is
        float64, else float32.

    Raises:
        ValueError: no loss function or examples, a negative number of steps, a learning rate or momentum out of range,
            no prunable layer (or only the last if structured), or a score that is not finite.
        RuntimeError: the model uses activation checkpointing, unless ``first_order``.
    """
    loss, batches = needed("prospr", loss_fn, batches)
    if steps < 0:
        raise ValueError(f"prospr: steps must be at least 0, got {steps}")
    check_descent("prospr", lr=lr, momentum=momentum)
    weights = scored_weights("prospr", model, include, exclude)
    chosen = list(weights)[: -1 if structured else None]
    if not chosen:
        raise ValueError("prospr: structured pruning leaves out the last layer, and the model has no other")
    feed = islice(cycle(batches), steps + 1)
    head = list(islice(feed, steps))
    last = next(feed, None)
    if last is None:
        raise ValueError("batches gave no examples")

    begin = starting_point(model)
    factors = {
        name: torch.ones((len(w), *[1] * (w.dim() - 1)) if structured else w.shape, dtype=w.dtype, device=w.device)
        for name, w in ((name, weights[name]) for name in chosen)
    }
    by_factor = not first_order
    if by_factor:
        for name, factor in factors.items():
            begin[weights[name]] = begin[weights[name]] * factor.requires_grad_()
        for value in begin.values():
            if not value.requires_grad:
                value.requires_grad_()
    theta = descend(model, loss, head, begin, lr=lr, momentum=momentum, create_graph=by_factor)
    if first_order:
        theta = {parameter: value.detach().requires_grad_() for parameter, value in theta.items()}
        grads = gradient_at(model, loss, theta, last, steps, [theta[weights[name]] for name in chosen])
        found = {name: wide(weights[name]) * wide(grad) for name, grad in zip(chosen, grads, strict=True)}
        if structured:
            found = {name: value.sum(dim=tuple(range(1, value.dim())), keepdim=True) for name, value in found.items()}
    else:
        grads = gradient_at(model, loss, theta, last, steps, factors.values())
        found = dict(zip(chosen, grads, strict=True))
    examples = sum(map(count_examples, [*head, last]))
    mean = mean_over_examples([(examples, found)])
    return all_finite("prospr", {name: value.abs() for name, value in mean.items()})
