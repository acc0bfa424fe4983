"""SNIP: connection sensitivity."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from stochprune.scores._common import Examples, LossFunction, checked, gradients, prunable_weights


def snip(
    model: nn.Module,
    loss_fn: LossFunction | None = None,
    batches: Examples | None = None,
    *,
    absolute: Literal["mean", "batch"] = "mean",
) -> dict[str, Tensor]:
    """``|w dL/dw|``, the sensitivity of the loss to a factor on the weight.

    Lee, Ajanthan and Torr 2019, "SNIP: single-shot network pruning based on connection sensitivity" (arXiv
    1810.02340), equation 6 without its division by the sum, which changes no order. A model with batch normalisation
    or dropout is scored in the mode it is in; a masked layer with the mask that it uses in that mode.

    Args:
        loss_fn: ``loss_fn(model(x), y)``, a scalar: the mean over the batch.
        batches: (x, y). Each counts by its number of examples.
        absolute: ``"mean"``: ``|w g|`` with g the gradient of the mean loss over all examples, whatever the batches,
            as in the authors' code; ``"batch"``: the mean over examples of ``|w g|`` with g the gradient of the
            batch's mean loss. Batches of one example then give each example's sensitivity.

    Returns:
        By weight name, a tensor of the weight's shape; float64 if the weight is, else float32.

    Raises:
        ValueError: no loss function or examples, an unknown ``absolute``, no prunable layer, a score not finite.
    """
    if loss_fn is None or batches is None:
        raise ValueError("snip needs loss_fn and batches")
    if absolute not in ("mean", "batch"):
        raise ValueError(f"absolute must be 'mean' or 'batch', got {absolute!r}")
    weights = {
        name: weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        for name, weight in prunable_weights(model).items()
    }
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    examples = 0
    for size, grads in gradients(model, loss_fn, batches):
        examples += size
        for name, grad in grads.items():
            total[name].add_(grad if absolute == "mean" else grad.abs(), alpha=size)
    return checked("snip", {name: (weights[name] * total[name] / examples).abs() for name in weights})
