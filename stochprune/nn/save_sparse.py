"""save_sparse and load_sparse: a model's state in a file in which weights that are 0 take one bit."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stochprune.arguments import checked
from stochprune.extras import extra
from stochprune.nn.sparse_file import Contents, Entry, decode, encode, read_index
from stochprune.runs.files import CheckpointError, replacing


@checked
def save_sparse(model: nn.Module, path: str | Path) -> None:
    """Write the state_dict of a model to a safetensors file in which a weight that is 0 takes one bit.

    Every tensor with enough zeros is stored as a bit mask and its kept values, the others as they are
    (:mod:`stochprune.nn.sparse_file` describes the file). Every bit of every value comes back, of NaN and -0 too: what
    is pruned must be +0, as :func:`stochprune.harden` leaves it, for -0 counts as a value. Tensors that share their
    memory are stored once. The file is written completely or not at all.

    Args:
        model: any model, as a rule from :func:`stochprune.harden`. Save before :func:`stochprune.sparsify`.
        path: of the file, which is replaced.

    Raises:
        MissingExtraError: safetensors is not installed.
        TypeError: not a module, or its state holds something else than dense tensors.
        ValueError: a tensor without values (on the meta device, lazy), or one whose name is taken.
        OSError: the file cannot be written.
    """
    with extra("files", "save_sparse"):
        from safetensors.torch import save

    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            what = str(value.layout) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"save_sparse: {name} is {what}, the file holds dense tensors; remove it from the state")
        if value.is_meta or is_lazy(value):
            where = "is not initialised" if is_lazy(value) else "lies on the meta device"
            raise ValueError(f"save_sparse: {name} {where} and holds no values; load them, or run the model, first")
    contents = encode(state)
    try:
        content = save(contents.stored, contents.metadata)
    except KeyError as error:  # a dtype that the format lacks
        name = next(name for name, value in state.items() if value.dtype == error.args[0])
        raise TypeError(f"save_sparse: {name} is {error.args[0]}, which safetensors does not store") from error
    with replacing(Path(path)) as file:
        file.write(content)


@overload
def load_sparse(path: str | Path) -> dict[str, Tensor]: ...
@overload
def load_sparse(path: str | Path, model: nn.Module) -> nn.Module: ...
@checked
def load_sparse(path: str | Path, model: nn.Module | None = None) -> nn.Module | dict[str, Tensor]:
    """Read a file of :func:`save_sparse`. No code in it is run, and nothing changes unless all of it fits.

    Args:
        path: of the file. It may come from anybody: what it claims is checked before memory is allocated for it.
        model: the model to load into, in place, with tensors of the same names, shapes and dtypes.

    Returns:
        The model, or without one the state_dict, on the CPU.

    Raises:
        MissingExtraError: safetensors is not installed.
        TypeError: an argument of another type.
        CheckpointError: the file does not exist or cannot be read, is truncated, damaged, or of another kind.
        ValueError: the file is not one of this model; the message names a tensor that differs.
    """
    contents = _read(path)
    try:
        entries = read_index(contents)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a sparse file, or is damaged: {error}") from error
    if model is None:
        return decode(contents.stored, entries)
    _check_model(path, model, entries)
    model.load_state_dict(decode(contents.stored, entries))
    return model


def _read(path: str | Path) -> Contents:
    with extra("files", "load_sparse"):
        from safetensors import SafetensorError, safe_open

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block
            raise CheckpointError(f"{path} is not a sparse file: it is not a regular file")
        with safe_open(path, framework="pt") as file:
            return Contents({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated, damaged or not a safetensors file: {error}") from error
    except (OSError, ValueError, TypeError, RuntimeError) as error:  # an invalid file name; sizes that torch refuses
        raise CheckpointError(f"{str(path)!r} cannot be read as a sparse file: {error}") from error


def _check_model(path: str | Path, model: nn.Module, entries: dict[str, Entry]) -> None:
    state = model.state_dict()
    if state.keys() != entries.keys():
        names = sorted(state.keys() ^ entries.keys())
        where = "the model" if names[0] in state else "the file"
        raise ValueError(f"load_sparse: {path} is of another model: only {where} has {', '.join(names[:5])}")
    for name, entry in entries.items():
        own = state[name]
        if not isinstance(own, Tensor) or own.is_meta or is_lazy(own):
            way = "run the model once" if is_lazy(own) else "call to_empty(device='cpu')"
            raise ValueError(f"load_sparse: {name} of the model holds no values: {way} first")
        if (tuple(own.shape), own.dtype) != (entry.shape, entry.dtype):
            raise ValueError(
                f"load_sparse: {name} is {entry.dtype} {entry.shape} in {path} and {own.dtype} {tuple(own.shape)} in "
                f"the model: build the same model, or use load_sparse(path) and load_state_dict"
            )
