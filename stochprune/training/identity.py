"""The data and the loss of a training, as a text that tells them from others. No batch is drawn for it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from stochprune.data.augment import Augmented
from stochprune.data.batches import Batches
from stochprune.runs.digests import json_digest, tensor_digest

MOST = 64
"""The most examples of a tensor, and items of a list, that are read: the first, the last and some between."""
PARTS: dict[type, tuple[str, ...]] = {
    Batches: ("x", "y", "batch_size", "seed", "shuffle", "drop_last"),
    Augmented: ("batches", "pixels", "flip"),
    DataLoader: ("dataset", "batch_size", "drop_last"),
    TensorDataset: ("tensors",),
    Subset: ("dataset", "indices"),
    ConcatDataset: ("datasets",),
}
"""The attributes that tell the data of a loader, or of a data set, from those of another."""


def identity(loader: Iterable[Any], *losses: object) -> str:
    """Return a digest that differs for other data and other losses, as far as can be told without running them.

    Of data in memory (see :data:`PARTS`, and lists of batches) some examples count, of other loaders and data sets
    their types and lengths: to read them could use up an iterator, or random numbers. Of losses the names count, of
    lambdas their names and constants, and of modules of ``torch.nn`` their settings.
    """
    return json_digest([_data(loader), *map(_loss, losses)])


def length_of(loader: Iterable[Any]) -> int | None:
    """Return the number of batches, None if unknown; a DataLoader may have ``__len__`` that raises TypeError."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def _data(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return _data(torch.as_tensor(value.astype(value.dtype.newbyteorder("="))))
    if isinstance(value, Tensor):
        described = [str(value.dtype), *value.shape]
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_meta:
            return described
        return [*described, tensor_digest(value.detach()[_some(len(value))] if value.dim() else value)]
    if type(value) in (list, tuple):
        return [len(value), *(_data(value[each]) for each in _some(len(value)))]
    if isinstance(value, Mapping):
        return {str(name): _data(each) for name, each in value.items()}
    if value is None or isinstance(value, bool | int | str):
        return value
    own = next((names for kind, names in PARTS.items() if isinstance(value, kind)), ())
    return [_name(type(value)), length_of(value), *(_data(getattr(value, name)) for name in own)]


def _some(count: int) -> list[int]:
    """Return at most :data:`MOST` positions of ``count``, evenly spaced, with the first and the last."""
    return sorted({round(each) for each in np.linspace(0, count - 1, min(count, MOST))})


def _loss(value: Any) -> Any:
    if isinstance(value, functools.partial):
        return [_loss(value.func), *map(_setting, value.args), {n: _setting(v) for n, v in value.keywords.items()}]
    if getattr(value, "__name__", "") == "<lambda>":  # all of them have one name
        code = value.__code__
        return [_name(value), *code.co_names, *map(_setting, (*code.co_consts, *(value.__defaults__ or ())))]
    kind = type(value)
    if isinstance(value, nn.Module) and kind.__module__.startswith("torch.nn."):
        settings = vars(value) | dict(value.named_buffers())
        return [_name(kind), {name: _setting(each) for name, each in settings.items()}]
    return _name(value) if hasattr(value, "__qualname__") else _name(kind)


def _setting(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _data(value)
    return repr(value) if isinstance(value, bool | int | float | str) else _name(type(value))


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
