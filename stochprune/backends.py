"""Which backend serves which device: a table one can print.

A backend is a module with the functions of :mod:`stochprune.reference`. The first backend of a device's row that is
installed and takes the dtypes serves; ``STOCHPRUNE_BACKEND`` overrides the choice for every call.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType

import torch
from torch import Tensor

MODULES = {
    "native": "stochprune.native",
    "triton": "stochprune.kernels",
    "cuda": "stochprune.cuda",
    "reference": "stochprune.reference",
}
TABLE = {
    "cpu": ("native", "reference"),
    "cuda": ("triton", "cuda", "reference"),
}
OVERRIDE = "STOCHPRUNE_BACKEND"


class BackendWarning(UserWarning):
    """A fast backend is missing and a slow one serves."""


@functools.cache
def _import(name: str) -> ModuleType | ImportError:
    try:
        return importlib.import_module(MODULES[name])
    except ImportError as error:
        return error


def load(name: str) -> ModuleType:
    """The backend called ``name``.

    Raises:
        ValueError: unknown name; the message lists the known ones.
        RuntimeError: the backend is not installed; the message says why.
    """
    if name not in MODULES:
        raise ValueError(f"unknown backend '{name}'; known are: {', '.join(MODULES)}")
    module = _import(name)
    if isinstance(module, ImportError):
        raise RuntimeError(f"the backend '{name}' is not available here: {module}") from module
    return module


@functools.cache
def _row(device: str) -> tuple[ModuleType, ...]:
    names = TABLE.get(device, ("reference",))
    found = [module for name in names if isinstance(module := _import(name), ModuleType)]
    if len(names) > 1 and found[0].__name__ == MODULES["reference"]:
        message = f"the {names[0]} backend is missing on {device} ({_import(names[0])}); the slow reference serves"
        warnings.warn(message, BackendWarning, stacklevel=4)
    return tuple(found)


def resolve(*tensors: Tensor) -> ModuleType:
    """The backend that serves these tensors, all on one device.

    Raises:
        ValueError: the override names an unknown backend.
        RuntimeError: the override names a backend that is not installed, or that does not take these tensors.
    """
    forced = os.environ.get(OVERRIDE)
    if forced:
        module = load(forced)
        if not _supports(module, *tensors):
            given = ", ".join(sorted({f"{t.dtype} on {t.device.type}".removeprefix("torch.") for t in tensors}))
            raise RuntimeError(f"{OVERRIDE}={forced}: that backend does not take {given}")
        return module
    return next(module for module in _row(tensors[0].device.type) if _supports(module, *tensors))


def _supports(module: ModuleType, *tensors: Tensor) -> bool:
    supports = getattr(module, "supports", None)
    return supports is None or bool(supports(*tensors))


def table() -> str:
    """The table as text: for each device its backends in order, and whether each one can be used on this machine."""
    lines = [f"{'device':<8}{'backend':<12}state"]
    for device, names in TABLE.items():
        for name in names:
            module = _import(name)
            state = f"not available: {module}" if isinstance(module, ImportError) else _state(device, module)
            lines.append(f"{device:<8}{name:<12}{state}")
    lines.append(f"override: {OVERRIDE}={os.environ.get(OVERRIDE) or '(unset)'}")
    return "\n".join(lines)


def _state(device: str, module: ModuleType) -> str:
    describe = getattr(module, "describe", None)
    details = "" if describe is None else f" ({describe()})"
    if device == "cuda" and not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no GPU, or no driver"
        return f"installed, not usable: {why}{details}"
    return f"ready{details}"
