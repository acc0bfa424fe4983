"""SparseGPT: second-order pruning of linear layers, in which the remaining weights compensate for pruned ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.nn.selection import Selectors
from stochprune.scores._common import Data, Examples, Loss, all_finite, wide
from stochprune.scores._inputs import linear_layers, matrix, scored_layers
from stochprune.scores._layer_wise import Sparsity, highest, moments, prune_in_turn


@checked
def sparsegpt(
    model: nn.Module,
    loss_fn: Loss = None,
    batches: Data = None,
    *,
    damping: float = 0.01,
    include: Selectors | None = None,
    exclude: Selectors | None = None,
) -> dict[str, Tensor]:
    """Return ``w_ij^2 / [(H_j:)^-1]_jj``: the squared error of removing w_ij if the inputs after j compensate for it.

    H is the second moment of the layer's input, and H_j: is its part from input j on. Frantar and Alistarh 2023,
    "SparseGPT: massive language models can be accurately pruned in one-shot" (arXiv 2301.00774), section 3.

    Args:
        loss_fn, batches: as for :func:`wanda`.
        damping: this fraction of the mean of H's diagonal is added to the diagonal.
        include, exclude: as in :func:`stochprune.convert`; a layer that shares its weight with an embedding is left out
            unless ``include`` names it.

    Returns:
        By the weight name of each linear layer, a tensor of its shape; float64 if the weight is, else float32.

    Raises:
        ValueError: no batches or examples, no linear layer or one without input, damping that is not positive, or a
            score that is not finite.
    """
    layers = scored_layers("sparsegpt", model, include, exclude)
    found = moments("sparsegpt", model, batches, layers, loss_fn)
    scores = {}
    for name, layer in layers.items():
        weight = wide(matrix(layer)).clone()
        scores[name] = matrix(layer, (weight / _inverse_factor(found[name], weight, damping).diagonal()).square())
    return all_finite("sparsegpt", scores)


@checked
@torch.no_grad()
def sparsegpt_prune(
    model: nn.Module,
    batches: Examples,
    sparsity: Sparsity,
    *,
    loss_fn: Loss = None,
    damping: float = 0.01,
    block: int | None = None,
    include: Selectors | None = None,
    exclude: Selectors | None = None,
) -> dict[str, Tensor]:
    """Prune the linear layers of ``model`` in place, one after the other, and adjust their remaining weights.

    The input of each layer comes from the pruned layers before it. Within a layer the columns are processed from the
    left. The mask of a block is chosen when the block is reached, and the columns to the right of a removed weight
    compensate for it (algorithm 1 of the paper). So an N:M mask chooses each group after all columns to its left have
    been compensated, as in the authors' code.

    Args:
        batches: as for :func:`wanda`, iterated once per layer.
        loss_fn: as for :func:`wanda`; a hook in it reads batches of another kind.
        sparsity: the fraction to prune of each block of columns; or (n, m): prune n of each m in a row.
        damping: as for :func:`sparsegpt`.
        block: the number of columns whose mask is chosen together; by default 128 for a fraction, and m for (n, m).
        include, exclude: as in :func:`stochprune.convert`; a layer that shares its weight with an embedding is left out
            unless ``include`` names it.

    Returns:
        bool masks by weight name.

    Raises:
        ValueError: as for :func:`sparsegpt`; also a sparsity outside [0, 1), a block that m does not divide, or a
            layer whose inputs m does not divide.
    """
    if block is None:
        block = sparsity[1] if isinstance(sparsity, tuple) else 128
    if block < 1 or (isinstance(sparsity, tuple) and block % sparsity[1]):
        raise ValueError(f"sparsegpt_prune: block {block} must be at least 1 and a multiple of m, sparsity {sparsity}")

    def prune(weight: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
        factor = _inverse_factor(moment, weight, damping)
        mask = torch.ones_like(weight, dtype=torch.bool)
        for left in range(0, weight.shape[1], block):
            columns = slice(left, min(left + block, weight.shape[1]))
            mask[:, columns] = highest((weight[:, columns] / factor.diagonal()[columns]).square(), sparsity)
            for j in range(columns.start, columns.stop):
                removed = torch.where(mask[:, j], 0, weight[:, j]) / factor[j, j]  # [out]
                weight[:, j:] -= torch.outer(removed, factor[j, j:])
                weight[:, j].masked_fill_(~mask[:, j], 0)
        return weight, mask

    layers = linear_layers(model, include, exclude)
    return prune_in_turn("sparsegpt_prune", model, batches, layers, sparsity, prune, (include, exclude), loss_fn)


def _inverse_factor(moment: Tensor, weight: Tensor, damping: float) -> Tensor:
    """Return U [in, in], upper triangular, with U^T U = (H + damping)^-1.

    Row j of U is that of the inverse of H_j:, times a constant. Weights of inputs that are always 0 become 0 in place.
    """
    if not 0 < damping < 1e300:
        raise ValueError(f"damping must be positive and finite, got {damping}")
    h = moment.double()  # float64: the inverse of a nearly singular H loses all bits of float32
    dead = h.diagonal() == 0
    weight[:, dead] = 0
    h.diagonal()[dead] = 1
    h.diagonal().add_(float(damping) * h.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True).to(weight.dtype)
