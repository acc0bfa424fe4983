"""SNIP: connection sensitivity."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.nn.selection import Selectors
from stochprune.scores._common import (
    Data,
    Loss,
    all_finite,
    gradients,
    mean_over_examples,
    needed,
    scored_weights,
    wide,
)


@checked
def snip(
    model: nn.Module,
    loss_fn: Loss = None,
    batches: Data = None,
    *,
    absolute: Literal["mean", "batch"] = "mean",
    include: Selectors | None = None,
    exclude: Selectors | None = None,
) -> dict[str, Tensor]:
    """Return ``|w dL/dw|``, the sensitivity of the loss to a factor on the weight.

    Lee, Ajanthan and Torr 2019, "SNIP: single-shot network pruning based on connection sensitivity" (arXiv
    1810.02340), equation 6 without its division by the sum, which does not change the order. The model is scored in its
    present mode, which matters for batch normalisation, dropout and masked layers.

    Args:
        loss_fn: ``loss_fn(model(x), y)`` returns a scalar, the mean over the batch; or a
            :class:`stochprune.data.BatchLoss` with a hook, for other batches.
        batches: weighted by their numbers of examples. Pairs (x, y), longer tuples of tensors, or mappings for which
            the model returns its loss, as for :func:`stochprune.finetune`.
        absolute: ``"mean"``: ``|w g|`` where g is the gradient of the mean loss over all examples, whatever the
            batches, as in the authors' code. ``"batch"``: the mean over examples of ``|w g|`` where g is the gradient
            of the batch's mean loss; with batches of one example this is the mean sensitivity of an example.
        include, exclude: as in :func:`prunable_weights`.

    Returns:
        By weight name, a tensor of the weight's shape; float64 if the weight is, else float32.

    Raises:
        ValueError: no loss function or examples, an unknown ``absolute``, no prunable layer, or a score that is not
            finite.
    """
    loss, batches = needed("snip", loss_fn, batches)
    if absolute not in ("mean", "batch"):
        raise ValueError(f"absolute must be 'mean' or 'batch', got {absolute!r}")
    weights = scored_weights("snip", model, include, exclude)
    terms = gradients(model, loss, batches, weights)
    if absolute == "batch":
        terms = ((size, {name: grad.abs() for name, grad in grads.items()}) for size, grads in terms)
    mean = mean_over_examples(terms)
    return all_finite("snip", {name: (wide(w) * mean[name]).abs() for name, w in weights.items()})
