"""Statistics of the weights that a mask keeps, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from stochprune.arguments import fits, shown
from stochprune.masks.ablate import masked_weights


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one layer under its mask; those of the kept weights are NaN if no weight is kept.

    Attributes:
        name, shape: of the weight.
        kept: number of weights kept.
        density: ``kept`` divided by the number of weights.
        mean, std: of the kept weights; ``std`` is the root of their mean squared deviation.
        skewness, kurtosis: third and fourth moment of ``(w - mean) / std``: 0 and 3 for a Gaussian, NaN if ``std``
            is 0.
        wasserstein: 1-D Wasserstein-1 distance between the weights kept and those that the reference keeps; None
            without a reference.
        wasserstein_zeros: the same distance between whole layers, in which pruned weights count as zeros.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    density: float
    mean: float
    std: float
    skewness: float
    kurtosis: float
    wasserstein: float | None
    wasserstein_zeros: float | None


def layer_statistics(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    reference: Mapping[str, Tensor] | None = None,
    reference_model: nn.Module | None = None,
) -> list[LayerStatistics]:
    """Return how many weights each mask keeps and how they are distributed, in the order of ``masks``.

    Singh and Liu 2021 (arXiv 2107.01808) use the distances to shuffled masks and to reinitialised weights to explain
    why pruning at initialisation is immune to both.

    Args:
        model, masks: as for :func:`apply`; nothing is changed.
        reference: other masks of the same weights, for the Wasserstein distances.
        reference_model: the model of the reference masks if it is not ``model``, for example reinitialised or trained.

    Raises:
        TypeError, ValueError: as for :func:`apply`, or reference masks of other weights.
    """
    op = "layer_statistics"
    kept = _kept_weights(op, model, masks)
    others = (
        {} if reference is None else _kept_weights(op, model if reference_model is None else reference_model, reference)
    )
    if reference is not None and set(reference) != set(masks):
        differing = ", ".join(sorted(set(reference) ^ set(masks)))
        raise ValueError(f"{op}: masks and reference must have the same weights, they differ in {differing}")
    return [statistics(name, values, tuple(masks[name].shape), others.get(name)) for name, values in kept.items()]


def kept_weights(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return the kept weights by weight name, float64 [kept], in row-major order.

    Raises:
        TypeError, ValueError: as for :func:`apply`.
    """
    return _kept_weights("kept_weights", model, masks)


def _kept_weights(op: str, model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: weight[mask].double().cpu().numpy() for name, weight, mask in masked_weights(op, model, masks)}


def statistics(
    name: str, values: np.ndarray, shape: tuple[int, ...], other: np.ndarray | None = None
) -> LayerStatistics:
    """Return the statistics of one layer from its kept weights [kept] and those of a reference of the same shape.

    Raises:
        TypeError: a name that is not text, a shape that is not a tuple of integers.
        ValueError: more weights kept than the shape holds, or values that are not a vector.
    """
    if not isinstance(name, str):
        raise TypeError(f"statistics: name must be text, got {name!r}")
    if not fits(tuple[int, ...], shape):
        raise TypeError(f"statistics: shape of {name} must be a tuple of integers, got {shown(shape)}")
    size = math.prod(shape)
    for argument, kept in (("values", values), ("other", other)):
        if kept is not None and (not isinstance(kept, np.ndarray) or kept.ndim != 1 or len(kept) > size):
            got = kept.shape if isinstance(kept, np.ndarray) else f"a {type(kept).__name__}"
            raise ValueError(f"statistics: {argument} of {name} must be an array of at most {size} numbers, got {got}")
    mean, std = (values.mean(), values.std()) if len(values) else (math.nan, math.nan)
    standard = (values - mean) / std if std > 0 else np.full(1, math.nan)
    return LayerStatistics(
        name=name,
        shape=shape,
        kept=len(values),
        density=len(values) / max(1, size),
        mean=float(mean),
        std=float(std),
        skewness=float((standard**3).mean()),
        kurtosis=float((standard**4).mean()),
        wasserstein=None if other is None else wasserstein(values, other),
        wasserstein_zeros=None if other is None else wasserstein(_padded(values, size), _padded(other, size)),
    )


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """The 1-D Wasserstein-1 distance of two samples, NaN if one is empty.

    It is the area between their distribution functions.
    """
    if not len(a) or not len(b):
        return math.nan
    a, b = np.sort(a.astype(np.float64)), np.sort(b.astype(np.float64))
    steps = np.sort(np.concatenate([a, b]))
    below_a, below_b = (np.searchsorted(sample, steps[:-1], side="right") / len(sample) for sample in (a, b))
    return float(np.sum(np.abs(below_a - below_b) * np.diff(steps)))


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([values, np.zeros(size - len(values))])
