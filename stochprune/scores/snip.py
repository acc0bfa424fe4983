"""SNIP: connection sensitivity."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.scores._common import (
    Examples,
    LossFunction,
    all_finite,
    gradients,
    mean_over_examples,
    needed,
    prunable_weights,
    wide,
)


@checked
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
    loss_fn, batches = needed("snip", loss_fn, batches)
    if absolute not in ("mean", "batch"):
        raise ValueError(f"absolute must be 'mean' or 'batch', got {absolute!r}")
    terms = gradients(model, loss_fn, batches)
    if absolute == "batch":
        terms = ((size, {name: grad.abs() for name, grad in grads.items()}) for size, grads in terms)
    mean = mean_over_examples(terms)
    return all_finite("snip", {name: (wide(w) * mean[name]).abs() for name, w in prunable_weights(model).items()})
