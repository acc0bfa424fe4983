"""Layer-wise pruning: each linear layer in turn is pruned to keep its outputs, on the inputs of the pruned model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stochprune.masks import from_scores, n_of_m
from stochprune.nn.selection import Selectors
from stochprune.scores._common import Data, Examples, Loss, all_finite, needed, repeatable, wide
from stochprune.scores._inputs import Layers, input_means, matrix, warn_of_others

Sparsity = float | tuple[int, int]
"""The fraction to prune, or (n, m): prune n of each m neighbours in a row."""


@torch.no_grad()
def prune_in_turn(
    op: str,
    model: nn.Module,
    batches: Examples,
    layers: Layers,
    sparsity: Sparsity,
    prune: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    selectors: tuple[Selectors | None, Selectors | None],
    loss_fn: Loss,
) -> dict[str, Tensor]:
    """Prune layers in place, one after the other; return bool masks by weight name, of the weights' shapes.

    Args:
        op: the public function, for messages.
        prune: a function of a copy of the weight [out, in] and the second moment of its inputs [in, in] that returns
            the pruned weight and its mask.
        selectors: include and exclude, for the warning of weights that are not pruned.
    """
    batches, masks = repeatable(batches), {}
    warn_of_others(op, model, layers, *selectors)
    for name, layer in layers.items():
        width = matrix(layer).shape[1]
        if isinstance(sparsity, tuple) and width % sparsity[1]:
            raise ValueError(
                f"{op}: m = {sparsity[1]} does not divide the {width} inputs of {name}: give sparsity another m, or a "
                "fraction"
            )
    for name, layer in layers.items():
        moment = moments(op, model, batches, {name: layer}, loss_fn)[name]
        weight, mask = prune(wide(matrix(layer)).clone(), moment)
        matrix(layer).copy_(all_finite(op, {name: weight})[name])
        masks[name] = matrix(layer, mask).contiguous()
    return masks


def moments(op: str, model: nn.Module, batches: Data, layers: Layers, loss_fn: Loss = None) -> dict[str, Tensor]:
    """Return the second moment of the inputs [in, in] by weight name."""
    loss, batches = needed(op, loss_fn, batches)
    return input_means(model, loss, batches, lambda x: x.T @ x, layers)


def highest(values: Tensor, sparsity: Sparsity) -> Tensor:
    """Return bool like ``values`` [out, in]: the highest of all, or of each group of m."""
    if isinstance(sparsity, tuple):
        return n_of_m({"": values}, sparsity[1] - sparsity[0], sparsity[1])[""]
    return from_scores({"": values}, sparsity, allow_empty=True)[""]
