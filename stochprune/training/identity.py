"""The data and the loss of a training, as a text that tells them from others. No batch is drawn for it."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from stochprune.data.augment import Augmented
from stochprune.data.batches import Batches
from stochprune.runs.digests import json_digest, tensor_digest

MOST = 64
"""The most rows of a tensor, and items of a list, that are read: the first, the last and some between.

Items of a list share this number, so that nested lists cost little more.
"""
FIELDS = 8
"""The fields of an example, or items of any inner list, that are read at least."""
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
    lambdas their names and constants, and of modules of ``torch.nn`` their settings. What cannot be described, such as
    an object that raises, counts by the name of its type.
    """
    return json_digest([_data(loader, MOST), *map(_loss, losses)])


def length_of(loader: Iterable[Any]) -> int | None:
    """Return the number of batches, None if unknown; a DataLoader may have ``__len__`` that raises TypeError."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def _data(value: Any, most: int) -> Any:
    try:
        return _described(value, most)
    except Exception:  # objects of users may raise anything, and no training should end because of its description
        return _name(type(value))


def _described(value: Any, most: int) -> Any:
    if isinstance(value, Tensor):
        return _tensor(value, most)
    if isinstance(value, np.ndarray):
        return [str(value.dtype), *value.shape, _rows(value, most)]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | np.generic):
        return repr(value)
    if type(value) in (list, tuple, range):
        chosen = _some(len(value), max(most, FIELDS))
        return [len(value), *_each([value[index] for index in chosen], most)]
    if type(value) is dict:
        names = list(value)
        chosen = [names[index] for index in _some(len(names), max(most, FIELDS))]
        return [len(names), *map(repr, chosen), *_each([value[name] for name in chosen], most)]
    own = next((names for kind, names in PARTS.items() if isinstance(value, kind)), ())
    return [_name(type(value)), _size(value), *(_data(getattr(value, name, None), most) for name in own)]


def _tensor(value: Tensor, most: int) -> list[Any]:
    described = [str(value.dtype), *map(int, value.shape)]
    if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_meta:
        return described
    rows = value.detach()[_some(len(value), most)] if value.dim() else value.detach()
    return [*described, tensor_digest(rows.resolve_conj().resolve_neg())]


def _rows(value: np.ndarray, most: int) -> str:
    rows = value[_some(len(value), most)] if value.ndim else value  # before any copy: the array may lie on disk
    return tensor_digest(torch.as_tensor(rows.astype(rows.dtype.newbyteorder("="))))


def _each(items: Sequence[Any], most: int) -> list[Any]:
    return [_data(item, max(1, most // len(items))) for item in items]


def _size(value: Any) -> int | None:
    try:
        return len(value)
    except Exception:  # a length that cannot be told is none
        return None


def _some(count: int, most: int) -> list[int]:
    """Return at most ``most`` positions of ``count``, evenly spaced, with the first and, if there are two, the last."""
    return sorted({round(each) for each in np.linspace(0, count - 1, min(count, most))})


def _loss(value: Any) -> Any:
    if isinstance(value, functools.partial):
        return [_loss(value.func), *map(_setting, value.args), {n: _setting(v) for n, v in value.keywords.items()}]
    if isinstance(value, types.FunctionType) and value.__name__ == "<lambda>":  # all of them have one name
        code = value.__code__
        return [_name(value), *code.co_names, *map(_setting, (*code.co_consts, *(value.__defaults__ or ())))]
    kind = type(value)
    if isinstance(value, nn.Module) and kind.__module__.startswith("torch.nn."):
        settings = {name: each for name, each in vars(value).items() if name[0] != "_" and name != "training"}
        return [_name(kind), {name: _setting(each) for name, each in (settings | dict(value.named_buffers())).items()}]
    return _name(value) if hasattr(value, "__qualname__") else _name(kind)


def _setting(value: Any) -> Any:
    known = Tensor | np.ndarray | np.generic | bool | int | float | str | list | tuple | dict
    return _data(value, MOST) if isinstance(value, known) else _name(type(value))


def _name(value: Any) -> str:
    return str(value.__qualname__)  # without its module, which differs if a script becomes a module
