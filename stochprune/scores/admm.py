"""ADMM pruning of linear layers: the mask grows while the remaining weights are fitted to the dense outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.nn.selection import Selectors
from stochprune.scores._common import Examples, Loss
from stochprune.scores._inputs import linear_layers
from stochprune.scores._layer_wise import Sparsity, highest, prune_in_turn


@checked
def admm_prune(
    model: nn.Module,
    batches: Examples,
    sparsity: Sparsity,
    *,
    loss_fn: Loss = None,
    damping: float = 0.1,
    iterations: int = 20,
    growing: int = 15,
    include: Selectors | None = None,
    exclude: Selectors | None = None,
) -> dict[str, Tensor]:
    """Prune the linear layers of ``model`` in place, one after the other, and fit their remaining weights.

    Boža 2024, "Fast and effective weight update for pruned large language models" (arXiv 2401.02938), algorithms 1 and
    2. Each layer minimises ``|X W^T - X V^T|^2`` over weights V that are 0 where the mask prunes, by the alternating
    direction method of multipliers with rho = 1, on inputs that are scaled to norm 1. In the first iterations the mask
    prunes a growing fraction of the layer (a cubic, Zhu and Gupta 2017); with (n, m) the best m - n of each m always
    stay. The input of each layer comes from the pruned layers before it.

    Args:
        batches: as for :func:`wanda`, iterated once per layer.
        loss_fn: as for :func:`wanda`; a hook in it reads batches of another kind.
        sparsity: the fraction to prune of each layer; or (n, m): prune n of each m in a row.
        damping: this fraction of the mean of the scaled moment's diagonal is added to the diagonal.
        iterations: of the method, at least 1.
        growing: the number of iterations in which the mask changes, 1 .. ``iterations``.
        include, exclude: as in :func:`stochprune.convert`; a layer that shares its weight with an embedding is left out
            unless ``include`` names it.

    Returns:
        bool masks by weight name.

    Raises:
        ValueError: no examples, no linear layer or one without input, a value outside its range, or a layer whose
            inputs m does not divide.
    """
    if not 0 < damping < 1e300:
        raise ValueError(f"admm_prune: damping must be positive and finite, got {damping}")
    if not 1 <= growing <= iterations:
        raise ValueError(f"admm_prune: growing must lie in 1 .. iterations = {iterations}, got {growing}")

    def prune(weight: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
        norms = moment.diagonal().sqrt() + 1e-8 * moment.diagonal().max().sqrt() + torch.finfo(torch.float32).tiny
        h = (moment / norms / norms[:, None]).double()
        h.diagonal().add_(damping * h.diagonal().mean())
        v = (weight * norms).double()  # [out, in]; the moment is symmetric, so rows may multiply from the left
        target = v @ h
        inverse = torch.linalg.inv(h + torch.eye(len(h), dtype=h.dtype, device=h.device))
        u, mask = torch.zeros_like(v), torch.ones_like(v, dtype=torch.bool)
        for step in range(iterations):
            if step < growing:
                mask = _largest((v + u).abs(), sparsity, (step + 1) / growing)
            z = torch.where(mask, v + u, 0)
            u = u + v - z
            v = (target + z - u) @ inverse
        return (torch.where(mask, v + u, 0) / norms).to(weight.dtype), mask

    layers = linear_layers(model, include, exclude)
    return prune_in_turn("admm_prune", model, batches, layers, sparsity, prune, (include, exclude), loss_fn)


def _largest(sizes: Tensor, sparsity: Sparsity, progress: float) -> Tensor:
    """Return the mask of a growing sparsity at a progress in (0, 1], bool [out, in]."""
    pruned = 1 - (1 - progress) ** 3
    if not isinstance(sparsity, tuple):
        return highest(sizes, sparsity * pruned)
    final = highest(sizes, sparsity)
    return highest(torch.where(final, torch.inf, sizes), sparsity[0] / sparsity[1] * pruned)
