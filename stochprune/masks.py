"""From scores to pruning masks, and what the ablations of masks need.

A mask is a dictionary of bool tensors by qualified weight name, True where the weight is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stochprune.models.initialise import kaiming_normal_
from stochprune.seeding import generator


def from_scores(
    scores: Mapping[str, Tensor], sparsity: float, scope: str = "global", *, allow_empty: bool = False
) -> dict[str, Tensor]:
    """Keep the weights of highest score.

    Of N weights exactly ``N - round(sparsity * N)`` are kept. Of equal scores, the one whose name sorts first is kept,
    and within a tensor the one of the lower row-major position; so a mask is a subset of every less sparse one.

    Args:
        scores: floating tensors by weight name; higher means keep.
        sparsity: fraction of weights pruned, in [0, 1).
        scope: ``"global"`` ranks all weights together, N being their number; ``"layer"`` each tensor's apart.
        allow_empty: do not object to a tensor of which nothing is kept.

    Returns:
        bool masks by weight name, each on its score's device.

    Raises:
        TypeError: a score that is not floating.
        ValueError: no scores, NaN scores, a sparsity outside [0, 1), an unknown scope, or a tensor left empty.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
    if scope not in ("global", "layer"):
        raise ValueError(f"scope must be 'global' or 'layer', got {scope!r}")
    if not any(score.numel() for score in scores.values()):
        raise ValueError("there are no scores")
    for name, score in scores.items():
        if not score.is_floating_point():
            raise TypeError(f"the score of {name} must be floating, got {score.dtype}")
        if bool(score.isnan().any()):
            raise ValueError(f"{int(score.isnan().sum())} of {score.numel()} scores of {name} are NaN")
    if scope == "layer":
        masks = {name: _keep_top(score.flatten(), sparsity).view(score.shape) for name, score in scores.items()}
    else:
        masks = _from_global_ranking(scores, sparsity)
    emptied = [name for name, mask in masks.items() if mask.numel() and not mask.any()]
    if emptied and not allow_empty:
        raise ValueError(
            f"sparsity {sparsity} leaves no weight in {', '.join(emptied)}: choose a lower sparsity"
            + (", or scope='layer'" if scope == "global" else "")
            + " (allow_empty=True keeps such a mask)"
        )
    return masks


def _from_global_ranking(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    names = sorted(scores)
    device = scores[names[0]].device
    kept = _keep_top(torch.cat([scores[name].flatten().to(device) for name in names]), sparsity)
    parts = dict(zip(names, kept.split([scores[name].numel() for name in names]), strict=True))
    return {name: parts[name].view(score.shape).to(score.device) for name, score in scores.items()}


def _keep_top(scores: Tensor, sparsity: float) -> Tensor:
    """bool [n]: the n - round(sparsity * n) highest of [n] scores; of equal ones the first."""
    count = scores.numel() - round(sparsity * scores.numel())
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    cut = scores.kthvalue(scores.numel() - count + 1).values
    kept = scores > cut
    ties = (scores == cut).nonzero().flatten()
    kept[ties[: count - int(kept.sum())]] = True
    return kept


def sparsity(masks: Mapping[str, Tensor]) -> float:
    """The fraction of weights that the masks prune.

    Raises:
        ValueError: there are no weights.
    """
    total = sum(mask.numel() for mask in masks.values())
    if not total:
        raise ValueError("there are no masks")
    return 1 - sum(int(mask.count_nonzero()) for mask in masks.values()) / total


def shuffle(masks: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Permute each mask within its tensor: layers keep their densities, nothing else.

    A tensor's permutation depends on ``seed``, its name and its size alone (ablation of Frankle, Dziugaite, Roy and
    Carbin 2020, "Pruning neural networks at initialization: why are we missing the mark?", arXiv 2009.08576).

    Args:
        masks: bool masks by weight name; they stay as they are.
        seed: 0 .. 2^64 - 1.
    """
    return {
        name: torch.from_numpy(generator(seed, "shuffle", name).permutation(mask.cpu().numpy().ravel()))
        .view(mask.shape)
        .to(mask.device)
        for name, mask in masks.items()
    }


def apply(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Set the pruned weights to exactly 0, in place.

    Args:
        model: has every weight that ``masks`` name; others stay as they are.
        masks: bool masks by weight name, each of its weight's shape.

    Returns:
        The model.

    Raises:
        ValueError: a name that the model lacks, or a mask of another shape or dtype.
    """
    for _, weight, mask in _masked_weights(model, masks):
        weight.masked_fill_(~mask, 0)
    return model


def reinitialize(model: nn.Module, masks: Mapping[str, Tensor], seed: int) -> nn.Module:
    """Draw fresh weights under the same masks, in place.

    The weights that ``masks`` name are drawn Kaiming normal (:func:`stochprune.models.mlp` starts from the same
    distribution, with other numbers for the same seed), and pruned ones set to 0. A layer's weights depend on ``seed``,
    its name and its shape alone. Biases and normalisation layers stay as they are. The ablation of Frankle et al. 2020
    (arXiv 2009.08576).

    Args:
        model, masks: as for :func:`apply`.
        seed: 0 .. 2^64 - 1.

    Returns:
        The model.

    Raises:
        ValueError: as for :func:`apply`, or a seed outside its range.
    """
    for name, weight, mask in _masked_weights(model, masks):
        kaiming_normal_(weight, generator(seed, "reinitialise", name)).masked_fill_(~mask, 0)
    return model


@dataclass(frozen=True)
class LayerStatistics:
    """One layer under its mask; numbers of kept weights are NaN where there are none.

    Attributes:
        name, shape: of the weight.
        kept: number of weights kept.
        density: ``kept`` over all.
        mean, std: of the kept weights; ``std`` is the root of their mean squared deviation.
        wasserstein: 1-D Wasserstein-1 distance between the weights kept and those that the reference masks keep; None
            without a reference.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    density: float
    mean: float
    std: float
    wasserstein: float | None


def layer_statistics(
    model: nn.Module, masks: Mapping[str, Tensor], reference: Mapping[str, Tensor] | None = None
) -> list[LayerStatistics]:
    """How many weights each mask keeps and how they are distributed, in the order of ``masks``.

    The distances to shuffled masks are those by which Singh and Liu 2021 (arXiv 2107.01808) explain why pruning at
    initialisation is immune to shuffling.

    Args:
        model, masks: as for :func:`apply`; nothing is changed.
        reference: other masks of the same weights, for the Wasserstein distance.

    Raises:
        ValueError: as for :func:`apply`, or reference masks of other weights.
    """
    if reference is not None and set(reference) != set(masks):
        raise ValueError(f"masks and reference differ in the weights {', '.join(sorted(set(reference) ^ set(masks)))}")
    others = {} if reference is None else {name: w[mask] for name, w, mask in _masked_weights(model, reference)}
    return [
        _statistics(name, weight[mask], tuple(weight.shape), others.get(name))
        for name, weight, mask in _masked_weights(model, masks)
    ]


def _statistics(name: str, kept: Tensor, shape: tuple[int, ...], other: Tensor | None) -> LayerStatistics:
    values = kept.double()
    return LayerStatistics(
        name=name,
        shape=shape,
        kept=values.numel(),
        density=values.numel() / max(1, math.prod(shape)),
        mean=values.mean().item(),
        std=values.std(correction=0).item() if values.numel() else math.nan,
        wasserstein=None if other is None else _wasserstein(values, other.double()),
    )


def _wasserstein(a: Tensor, b: Tensor) -> float:
    from scipy.stats import wasserstein_distance  # here: scipy.stats takes a second to import

    if not (a.numel() and b.numel()):
        return math.nan
    return float(wasserstein_distance(a.cpu().numpy(), b.cpu().numpy()))


def _masked_weights(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, weight (detached, sharing memory) and mask on its device; all are checked before the first is given."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(f"the model has no parameter {name!r}; it has: {', '.join(parameters)}")
        shape = tuple(parameters[name].shape)
        if mask.dtype != torch.bool or tuple(mask.shape) != shape:
            raise ValueError(f"the mask of {name} must be bool {shape}, got {mask.dtype} {tuple(mask.shape)}")
    for name, mask in masks.items():
        weight = parameters[name].detach()
        yield name, weight, mask.to(weight.device)
