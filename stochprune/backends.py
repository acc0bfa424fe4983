"""Which backend serves which device: a table one can print.

A backend is a module with the functions of :class:`Backend`; :mod:`stochprune.reference` says what they compute. The
first backend of a device's row that is installed and takes the dtypes serves; ``STOCHPRUNE_BACKEND`` overrides the
choice for every call.
"""

from __future__ import annotations

import functools
import importlib
import operator
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from stochprune.address import KLTerm, Logits, Mask, Masks
from stochprune.sparse_rows import SparseRows

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

Two = tuple[Tensor | None, Tensor | None]
Three = tuple[Tensor | None, Tensor | None, Tensor | None]


class Backend(Protocol):
    """The functions of a backend. Gradients are None where ``needs`` says that they are not wanted."""

    @property
    def NAME(self) -> str: ...
    @property
    def MATRICES(self) -> bool: ...  # whether masked_linear takes x [M, K] of one draw too, its backward grad [M, N]

    def supports(self, *tensors: Tensor) -> bool: ...  # which depends on nothing but their devices and dtypes
    def describe(self) -> str: ...

    def keep_mask(self, threshold: Tensor, *, mask: Mask) -> Tensor: ...
    def threshold_from_logits(self, logits: Logits) -> Tensor: ...

    def masked_linear(
        self, x: Tensor, weight: Tensor, logits: Logits, bias: Tensor | None, *, mask: Mask
    ) -> Tensor: ...
    def masked_linear_backward(
        self,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        logits: Logits,
        *,
        mask: Mask,
        needs: tuple[bool, bool, bool],
        kl: KLTerm | None = None,
    ) -> Three: ...

    def masked_weight(
        self,
        weight: Tensor,
        logits: Logits,
        *,
        mask: Mask,
        dtype: torch.dtype,
        rows: Tensor | None = None,
        memo: list[Tensor] | None = None,
    ) -> Tensor: ...
    def weight_grad(
        self,
        grad: Tensor,
        weight: Tensor,
        logits: Logits,
        *,
        mask: Mask,
        needs: tuple[bool, bool],
        rows: Tensor | None = None,
        memo: list[Tensor] | None = None,
    ) -> Two: ...
    def masked_weights(
        self, weights: Sequence[Tensor], logits: Sequence[Logits], *, masks: Masks, dtype: torch.dtype
    ) -> list[Tensor]: ...
    def multi_layer_grads(
        self,
        grads: Sequence[Tensor],
        weights: Sequence[Tensor],
        logits: Sequence[Logits],
        *,
        masks: Masks,
        needs: tuple[bool, bool],
    ) -> tuple[list[Tensor] | None, list[Tensor] | None]: ...

    def nm_masked_weight(
        self, weight: Tensor, logits: Logits, pattern: tuple[int, int], *, mask: Mask, dtype: torch.dtype
    ) -> Tensor: ...
    def nm_weight_grad(
        self,
        grad: Tensor,
        weight: Tensor,
        logits: Logits,
        pattern: tuple[int, int],
        *,
        mask: Mask,
        needs: tuple[bool, bool],
    ) -> Two: ...

    def moments(
        self, weight: Tensor, logits: Logits | None, rho: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]: ...
    def moments_grad(
        self, dmean: Tensor, dvariance: Tensor, weight: Tensor, logits: Logits | None, rho: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]: ...
    def normal(self, rows: int, cols: int, *, mask: Mask) -> Tensor: ...
    def gaussian_weight(self, mu: Tensor, rho: Tensor, *, mask: Mask, dtype: torch.dtype) -> Tensor: ...
    def gaussian_grad(self, grad: Tensor, rho: Tensor, *, mask: Mask) -> Tensor: ...

    def sparse_linear(self, x: Tensor, rows: SparseRows, bias: Tensor | None) -> Tensor: ...

    def bernoulli_kl(self, logits: Logits, prior_logits: Logits) -> Tensor: ...
    def bernoulli_kl_backward(
        self, grad: Tensor, logits: Logits, prior_logits: Logits, *, needs: tuple[bool, bool]
    ) -> Two: ...
    def gaussian_kl(
        self, mu: Tensor, sigma: Tensor, prior_mu: Tensor, prior_sigma: Tensor, logits: Logits | None
    ) -> Tensor: ...
    def gaussian_kl_backward(
        self,
        grad: Tensor,
        mu: Tensor,
        sigma: Tensor,
        prior_mu: Tensor,
        prior_sigma: Tensor,
        logits: Logits | None,
        *,
        needs: Sequence[bool],
    ) -> list[Tensor | None]: ...


if TYPE_CHECKING:  # a function that a backend lacks, or one with other arguments, is a type error here
    from stochprune import cuda, native, reference

    _cuda: Backend = cuda
    _native: Backend = native
    _reference: Backend = reference


class BackendWarning(UserWarning):
    """A fast backend is missing and a slow one serves."""


@functools.cache
def _import(name: str) -> Backend | ImportError:
    try:
        return cast(Backend, importlib.import_module(MODULES[name]))
    except ImportError as error:
        return error


def load(name: str) -> Backend:
    """Return the backend called ``name``.

    Raises:
        ValueError: unknown name; the message lists the known ones.
        RuntimeError: the backend is not installed; the message says why.
    """
    if name not in MODULES:
        raise ValueError(f"unknown backend '{name}'; known are: {', '.join(MODULES)}")
    backend = _import(name)
    if isinstance(backend, ImportError):
        raise RuntimeError(f"the backend '{name}' is not available here: {backend}") from backend
    return backend


@functools.cache
def _row(device: str) -> tuple[Backend, ...]:
    names = TABLE.get(device, ("reference",))
    found = [backend for name in names if not isinstance(backend := _import(name), ImportError)]
    if len(names) > 1 and found[0].NAME == "reference":
        message = f"the {names[0]} backend is missing on {device} ({_import(names[0])}); the slow reference serves"
        warnings.warn(message, BackendWarning, stacklevel=4)
    return tuple(found)


def resolve(*tensors: Tensor) -> Backend:
    """Return the backend that serves these tensors, all on one device.

    Raises:
        ValueError: the override names an unknown backend.
        RuntimeError: the override names a backend that is not installed, or that does not take these tensors.
    """
    # Found again by what `supports` depends on, since an eager call asks twice.
    key = (os.environ.get(OVERRIDE), tensors[0].device.type, *map(_dtype, tensors))
    backend = _serving.get(key)
    if backend is None:
        backend = _serving[key] = _choose(*tensors)
    return backend


_dtype = operator.attrgetter("dtype")
_serving: dict[tuple[Any, ...], Backend] = {}


def _choose(*tensors: Tensor) -> Backend:
    forced = os.environ.get(OVERRIDE)
    if forced:
        backend = load(forced)
        if not backend.supports(*tensors):
            given = ", ".join(sorted({f"{t.dtype} on {t.device.type}".removeprefix("torch.") for t in tensors}))
            raise RuntimeError(f"{OVERRIDE}={forced}: that backend does not take {given}")
        return backend
    return next(backend for backend in _row(tensors[0].device.type) if backend.supports(*tensors))


def forget() -> None:
    """Look again which backends serve: after a change of :data:`TABLE`, or of what is installed."""
    _row.cache_clear()
    _serving.clear()


def table() -> str:
    """Return the table as text: for each device its backends in order, and whether this machine can use each one."""
    lines = [f"{'device':<8}{'backend':<12}state"]
    for device, names in TABLE.items():
        for name in names:
            backend = _import(name)
            state = f"not available: {backend}" if isinstance(backend, ImportError) else _state(device, backend)
            lines.append(f"{device:<8}{name:<12}{state}")
    lines.append(f"override: {OVERRIDE}={os.environ.get(OVERRIDE) or '(unset)'}")
    return "\n".join(lines)


def _state(device: str, backend: Backend) -> str:
    details = f" ({described})" if (described := backend.describe()) else ""
    if device == "cuda" and not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no GPU, or no driver"
        return f"installed, not usable: {why}{details}"
    return f"ready{details}"
