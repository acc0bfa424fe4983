"""Apply masks to the weights of a model, and change scores, masks or weights for ablations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from stochprune.masks.select import check_masks, check_scores
from stochprune.models.initialise import kaiming_normal_
from stochprune.seeding import check_seed, generator


def invert(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Change the sign of scores, so that :func:`from_scores` keeps the weights of lowest score.

    A score that means something makes a much worse mask if it is inverted. This is an ablation of Frankle, Dziugaite,
    Roy and Carbin 2020 (arXiv 2009.08576).

    Args:
        scores: floating tensors by weight name; they stay as they are.

    Returns:
        Tensors of the same names, shapes and dtypes.

    Raises:
        TypeError: scores that are not floating tensors.
        ValueError: no scores, or NaN scores.
    """
    check_scores("invert", "score", scores)
    return {name: -score for name, score in scores.items()}


def shuffle(masks: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Permute each mask within its tensor, so that only the densities of the layers stay the same.

    The permutation of a tensor depends only on ``seed``, its name and its size. This is an ablation of Frankle,
    Dziugaite, Roy and Carbin 2020, "Pruning neural networks at initialization: why are we missing the mark?" (arXiv
    2009.08576).

    Args:
        masks: bool masks by weight name; they stay as they are.
        seed: 0 .. 2^64 - 1.

    Raises:
        TypeError: masks that are not bool tensors.
        ValueError: a seed that is not an integer in its range.
    """
    check_masks("shuffle", masks)
    check_seed("shuffle", seed)
    return {
        name: torch.from_numpy(generator(seed, "shuffle", name).permutation(mask.cpu().numpy().ravel()))
        .view(mask.shape)
        .to(mask.device)
        for name, mask in masks.items()
    }


def apply(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Set the pruned weights to exactly 0, in place.

    Args:
        model: a model with every weight that ``masks`` name; its other weights do not change.
        masks: bool masks by weight name, each of its weight's shape.

    Returns:
        The model.

    Raises:
        TypeError: a model that is not a module, masks that are not a dictionary.
        ValueError: a name that the model lacks, or a mask of another shape or dtype.
    """
    for _, weight, mask in masked_weights("apply", model, masks):
        weight.masked_fill_(~mask, 0)
    return model


def reinitialize(model: nn.Module, masks: Mapping[str, Tensor], seed: int) -> nn.Module:
    """Initialise the weights again under the same masks, in place.

    The weights that ``masks`` name are sampled from the Kaiming normal distribution, and pruned ones are set to 0.
    (:func:`stochprune.models.mlp` uses the same distribution, with other numbers for the same seed.) A layer's weights
    depend only on ``seed``, its name and its shape. Biases and normalisation layers do not change. This is an ablation
    of Frankle et al. 2020 (arXiv 2009.08576).

    Args:
        model, masks: as for :func:`apply`.
        seed: 0 .. 2^64 - 1.

    Returns:
        The model.

    Raises:
        TypeError, ValueError: as for :func:`apply`, or a seed outside its range.
    """
    check_seed("reinitialize", seed)
    for name, weight, mask in masked_weights("reinitialize", model, masks):
        kaiming_normal_(weight, generator(seed, "reinitialise", name)).masked_fill_(~mask, 0)
    return model


@torch.no_grad()
def rescale(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Set the pruned weights to 0 and rescale each layer to the variance that it had.

    A layer's kept weights are multiplied by ``sqrt(sum w^2 / sum of the kept w^2)``. A network that was initialised on
    the edge of chaos (Kaiming normal, for ReLU) is then on it again after pruning. Hayou, Ton, Doucet and Teh 2021,
    "Robust pruning at initialization" (arXiv 2002.08797), section 3.

    Args:
        model, masks: as for :func:`apply`; changed in place.

    Returns:
        The factor of each layer.

    Raises:
        TypeError, ValueError: as for :func:`apply`, or a layer whose kept weights are all 0.
    """
    factors = {}
    for name, weight, mask in masked_weights("rescale", model, masks):
        whole, kept = weight.double().square().sum().item(), weight[mask].double().square().sum().item()
        if not kept > 0:
            raise ValueError(
                f"rescale: the mask of {name} keeps {int(mask.sum())} weights, and all of them are 0: leave it out"
            )
        factors[name] = math.sqrt(whole / kept)
    for name, weight, mask in masked_weights("rescale", model, masks):
        weight.mul_(factors[name]).masked_fill_(~mask, 0)
    return factors


def expand(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Expand masks of channels [C_out, 1, ...], or others that broadcast, to the shapes of their weights.

    Raises:
        TypeError: masks that are not bool tensors, a model that is not a module.
        ValueError: a name that the model lacks, or a mask that does not broadcast to its weight.
    """
    check_masks("expand", masks)
    parameters = _parameters("expand", model, masks)
    expanded = {}
    for name, mask in masks.items():
        shape = parameters[name].shape
        if mask.dim() != len(shape) or any(a not in (1, b) for a, b in zip(mask.shape, shape, strict=True)):
            raise ValueError(f"expand: the mask of {name}, {tuple(mask.shape)}, does not broadcast to {tuple(shape)}")
        expanded[name] = mask.expand(shape).contiguous()
    return expanded


def masked_weights(op: str, model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, weight (detached, sharing memory) and mask on the weight's device, after checking all of them."""
    parameters = _parameters(op, model, masks)
    for name, mask in masks.items():
        shape = tuple(parameters[name].shape)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != shape:
            got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            raise ValueError(f"{op}: the mask of {name} must be bool {shape}, got {got}")
        if mask.is_meta and not parameters[name].is_meta:
            raise ValueError(f"{op}: the mask of {name} is on the meta device and has no values")
    for name, mask in masks.items():
        weight = parameters[name].detach()
        yield name, weight, mask.to(weight.device)


def _parameters(op: str, model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Return the model's parameters by name, a shared one under each of its names; check that masks name no others."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(masks, Mapping):
        raise TypeError(f"{op}: masks must be a dictionary of bool tensors by weight name, got {type(masks).__name__}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in masks:
        if name not in parameters:
            raise ValueError(f"{op}: the model has no parameter {name!r}; it has: {', '.join(parameters)}")
    return parameters
