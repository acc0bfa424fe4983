"""The choice of a backend by device and dtype, and a table of it.

A backend is a module with the functions of :class:`Backend`; :mod:`stochprune.reference` defines what they compute.
Each device has a list of backends. The first one that is installed and accepts the dtypes is used. The variable
``STOCHPRUNE_BACKEND`` overrides this choice for every call.
"""

from __future__ import annotations

import functools
import importlib
import operator
import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from stochprune.address import Grads2, Grads3, KLTerm, Logits, Mask, Masks, Memo, Needs2, Needs3, Rows
from stochprune.sparse_rows import SparseRows

_variable: Callable[[str], str | None]
try:
    from stochprune import _C

    _variable = _C.variable  # os.environ.get raises and catches two errors if the variable is not set
except ImportError:
    _variable = os.environ.get

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


class FusedConvolution(Protocol):
    """A convolution whose filters are masked as they are used.

    It returns [D, M, N, *T], contiguous, or [M, N, *T] in torch's memory format; None where torch's convolution of
    masked filters is better.

    Args:
        x: [D, M, C, *S] for D draws, [M, C, *S] for one.
        weight, logits: [N, C / groups, *kernel], or as torch has them if transposed.
        bias: [N] or None, in x's dtype.
        geometry: stride, padding, dilation and output padding of each dimension; 1 if transposed, else 0; groups.
    """

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        logits: Logits,
        bias: Tensor | None,
        *,
        mask: Mask,
        geometry: Sequence[int],
    ) -> Tensor | None: ...


class Backend(Protocol):
    """The functions of a backend. A gradient that ``needs`` does not ask for is None."""

    @property
    def NAME(self) -> str: ...
    @property
    def MATRICES(self) -> bool: ...  # True if masked_linear and its backward also accept matrices, for one draw

    def supports(self, *tensors: Tensor) -> bool: ...  # depends on their devices and dtypes only
    def describe(self) -> str: ...

    def keep_mask(self, threshold: Tensor, *, mask: Mask) -> Tensor: ...
    def threshold_from_logits(self, logits: Logits) -> Tensor: ...
    def stochastic_round(self, values: Tensor, *, mask: Mask) -> Tensor: ...

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
        needs: Needs3,
        kl: KLTerm | None = None,
    ) -> Grads3: ...

    @property
    def masked_convolution(self) -> FusedConvolution | None: ...  # None: torch convolves with masked_weight

    def masked_weight(
        self, weight: Tensor, logits: Logits, *, mask: Mask, dtype: torch.dtype, rows: Rows = None, memo: Memo = None
    ) -> Tensor: ...
    def weight_grad(
        self,
        grad: Tensor,
        weight: Tensor,
        logits: Logits,
        *,
        mask: Mask,
        needs: Needs2,
        rows: Rows = None,
        memo: Memo = None,
    ) -> Grads2: ...
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
        needs: Needs2,
    ) -> tuple[list[Tensor] | None, list[Tensor] | None]: ...

    def nm_masked_weight(
        self, weight: Tensor, logits: Logits, pattern: tuple[int, int], *, mask: Mask, dtype: torch.dtype
    ) -> Tensor: ...
    def nm_weight_grad(
        self, grad: Tensor, weight: Tensor, logits: Logits, pattern: tuple[int, int], *, mask: Mask, needs: Needs2
    ) -> Grads2: ...

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
    def bernoulli_kl_backward(self, grad: Tensor, logits: Logits, prior_logits: Logits, *, needs: Needs2) -> Grads2: ...
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


if TYPE_CHECKING:  # a missing function, or one with other arguments, is a type error here
    from stochprune import cuda, native, reference

    _cuda: Backend = cuda
    _native: Backend = native
    _reference: Backend = reference


class BackendWarning(UserWarning):
    """A fast backend is missing, so a slow one is used."""


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
        message = f"the {names[0]} backend is missing on {device} ({_import(names[0])}); the slow reference is used"
        warnings.warn(message, BackendWarning, stacklevel=4)
    return tuple(found)


def resolve(*tensors: Tensor) -> Backend:
    """Return the backend for these tensors, which must be on one device.

    Raises:
        ValueError: the override names an unknown backend.
        RuntimeError: the override names a backend that is not installed, or that does not accept these tensors.
    """
    # Cached by the arguments of `supports`, since an eager call asks twice. A device takes longer to hash than True.
    key = (_variable(OVERRIDE), tensors[0].is_cpu or tensors[0].device, *map(_dtype, tensors))
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
            raise RuntimeError(f"{OVERRIDE}={forced}: that backend does not accept {given}")
        return backend
    return next(backend for backend in _row(tensors[0].device.type) if backend.supports(*tensors))


def forget() -> None:
    """Clear the cached choices, after a change of :data:`TABLE` or of the installed backends."""
    _row.cache_clear()
    _serving.clear()


class State(NamedTuple):
    """A backend and a device of this machine: its details, or the reason why it cannot serve the device."""

    device: str
    name: str
    usable: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.device:<8}{self.name:<12}{self.reason}"


def states() -> list[State]:
    """Return the state of the backends of each device, in order."""
    return [State(device, name, *_state(device, name)) for device, names in TABLE.items() for name in names]


def table() -> str:
    """Return the table as text: the backends of each device in order, and whether this machine can use each one."""
    override = f"override: {OVERRIDE}={os.environ.get(OVERRIDE) or '(unset)'}"
    return "\n".join([f"{'device':<8}{'backend':<12}state", *map(str, states()), override])


def _state(device: str, name: str) -> tuple[bool, str]:
    try:
        backend = _import(name)
    except Exception as error:  # for example a variable that names an unknown instruction set
        return False, f"broken: {error}"
    if isinstance(backend, ImportError):
        return False, f"not available: {backend}"
    details = f" ({described})" if (described := backend.describe()) else ""
    if device == "cuda" and not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no GPU, or no driver"
        return False, f"installed, not usable: {why}{details}"
    return True, f"ready{details}"
