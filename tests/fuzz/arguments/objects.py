"""Small models, data and networks from which the calls are made; each call makes its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import stochprune as sp
from stochprune.data import Batches, Dataset
from stochprune.data.splits import Subset, split
from stochprune.pac_bayes import Prior


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def inputs(count: int = 12) -> Tensor:
    return tensor(count, 6)


def labels(count: int = 12) -> Tensor:
    return torch.arange(count) % 3


def dense() -> nn.Module:
    return nn.Sequential(sp.models.mlp((6, 5), seed=0), nn.ReLU(), sp.models.mlp((5, 3), seed=1))


def names() -> list[str]:
    return list(sp.scores.prunable_weights(dense()))


def masks() -> dict[str, Tensor]:
    return {name: tensor(*w.shape) > -0.5 for name, w in sp.scores.prunable_weights(dense()).items()}


def scores() -> dict[str, Tensor]:
    return {name: tensor(*w.shape) for name, w in sp.scores.prunable_weights(dense()).items()}


def masked() -> nn.Module:
    return sp.convert(dense(), masks(), seed=5)


def loader() -> Batches:
    return Batches(inputs(), labels(), 6)


def dataset() -> Dataset:
    return Dataset("mine", inputs(), labels(), inputs(6), labels(6), 3)


def part() -> Subset:
    parts = split(inputs(40), labels(40), 0.5)
    assert parts.prior is not None
    return parts.certify


def prior() -> Prior:
    known = split(inputs(40), labels(40), 0.5).prior
    assert known is not None
    return Prior(sp.convert(dense(), keep_kept=0.9), (known,))


def probabilities() -> np.ndarray:
    return np.array([0.0, 0.5, 0.25, 1.0, 0.0])


def without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def fields(kind: type) -> dict[str, Any]:
    """Return the fields of a configuration by default."""
    made = kind()
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(kind)}
