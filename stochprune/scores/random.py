"""Random pruning."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.nn.selection import Selectors
from stochprune.scores._common import Data, Loss, prunable_weights, scored_weights
from stochprune.seeding import generator


@checked
def random(
    model: nn.Module,
    loss_fn: Loss = None,
    batches: Data = None,
    *,
    seed: int = 0,
    densities: Mapping[str, float] | None = None,
    include: Selectors | None = None,
    exclude: Selectors | None = None,
) -> dict[str, Tensor]:
    """Return scores uniform in [0, 1), or random scores with given densities of the layers.

    The scores of a weight tensor depend only on ``seed``, its name and its shape, not on the model's other layers.
    ``loss_fn`` and ``batches`` are not used.

    Args:
        seed: 0 .. 2^64 - 1.
        densities: the fraction to keep, in [0, 1], of each prunable weight tensor (see :func:`erk_densities`). The
            scores are then shifted ranks: ``round(density * n)`` of a layer's n scores are positive. A global cut that
            keeps as many weights as there are positive scores keeps exactly these.
        include, exclude: as in :func:`prunable_weights`.

    Returns:
        By weight name, a float32 tensor of the weight's shape.

    Raises:
        ValueError: no prunable layer, a seed outside its range, densities out of range or of other weights.
    """
    weights = scored_weights("random", model, include, exclude)
    uniform = {
        name: torch.from_numpy(generator(seed, "random", name).random(weight.shape, np.float32)).to(weight.device)
        for name, weight in weights.items()
    }
    if densities is None:
        return uniform
    if set(densities) != set(weights):
        raise ValueError(f"densities must be given for {', '.join(weights)}, got {', '.join(densities) or 'none'}")
    for name, density in densities.items():
        if not 0 <= density <= 1:
            raise ValueError(f"the density of {name} must lie in [0, 1], got {density}")
    return {name: _shifted_ranks(score, densities[name]) for name, score in uniform.items()}


def _shifted_ranks(score: Tensor, density: float) -> Tensor:
    """Return (kept - 1/2 - rank) / n, where rank 0 is the highest score; it is positive for the first ``kept``."""
    n = score.numel()
    ranks = score.flatten().argsort(descending=True, stable=True).argsort().view(score.shape)
    return ((round(density * n) - 0.5 - ranks.double()) / max(1, n)).float()


@checked
def erk_densities(
    model: nn.Module, sparsity: float, include: Selectors | None = None, exclude: Selectors | None = None
) -> dict[str, float]:
    """Return the densities of the Erdos-Renyi-kernel rule: proportional to (sum of the sizes) / (product of the sizes).

    Layers whose density would exceed 1 are dense, and the densities of the others are lowered accordingly. Evci, Gale,
    Menick, Castro and Elsen 2020, "Rigging the lottery" (arXiv 1911.11134), section 3.

    Args:
        sparsity: of all these weights together, in [0, 1).
        include, exclude: as in :func:`prunable_weights`.

    Raises:
        ValueError: a sparsity outside [0, 1), or no prunable layer.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
    shapes = {name: tuple(weight.shape) for name, weight in prunable_weights(model, include, exclude).items()}
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        budget = (1 - sparsity) * sum(sizes.values()) - sum(sizes[name] for name in dense)
        free = [name for name in shapes if name not in dense]
        # density = scale * sum(shape) / size, so a layer keeps scale * sum(shape) weights
        scale = budget / sum(sum(shapes[name]) for name in free) if free else 0.0
        over = {name for name in free if scale * sum(shapes[name]) > sizes[name]}
        if not over:
            return {n: 1.0 if n in dense else scale * sum(shapes[n]) / sizes[n] for n in shapes}
        dense |= over
