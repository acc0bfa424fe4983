"""Wanda: scores from weights and activations."""

from __future__ import annotations

from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.nn.selection import Selectors
from stochprune.scores._common import Data, Loss, all_finite, needed, wide
from stochprune.scores._inputs import input_means, matrix, scored_layers


@checked
def wanda(
    model: nn.Module,
    loss_fn: Loss = None,
    batches: Data = None,
    *,
    include: Selectors | None = None,
    exclude: Selectors | None = None,
) -> dict[str, Tensor]:
    """Return ``|w_ij| |x_j|``: the weight times the root mean square of its input over examples, for linear layers.

    Sun, Liu, Bair and Kolter 2024, "A simple and effective pruning approach for large language models" (arXiv
    2306.11695), equation 1 (up to one factor a layer, the number of examples). Compare within each output, as they do:
    ``masks.from_scores(scores, sparsity, scope="row")``; for 2:4 sparsity ``masks.n_of_m(scores, 2, 4)``.

    Args:
        loss_fn: not used, except for the hook of a :class:`stochprune.data.BatchLoss`, which runs the model.
        batches: as for :func:`snip`; labels may be anything, such as None, and in a pair x may be a dictionary of the
            model's inputs. Padding counts like other tokens, so pack texts.
        include, exclude: as in :func:`stochprune.convert`; a layer that shares its weight with an embedding is left out
            unless ``include`` names it.

    Returns:
        By the weight name of each linear layer, a tensor of its shape; float64 if the weight is, else float32.

    Raises:
        ValueError: no batches or examples, no linear layer or one that no input of any batch reaches, or a score that
            is not finite.
    """
    loss, batches = needed("wanda", loss_fn, batches)
    layers = scored_layers("wanda", model, include, exclude)
    squares = input_means(model, loss, batches, lambda x: x.square().sum(dim=0), layers)
    scores = {name: matrix(layer, wide(matrix(layer)).abs() * squares[name].sqrt()) for name, layer in layers.items()}
    return all_finite("wanda", scores)
