"""The table of masked types by dense type; users can add types of their own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stochprune.nn.layer import MaskedLayer
from stochprune.nn.masked_attention import MaskedMultiheadAttention
from stochprune.nn.masked_bilinear import MaskedBilinear
from stochprune.nn.masked_conv import CONVOLUTIONS
from stochprune.nn.masked_embedding import MaskedEmbedding
from stochprune.nn.masked_linear import MaskedLinear
from stochprune.nn.masked_module import MaskedModule, MaskedParameter
from stochprune.nn.masked_recurrent import RECURRENT
from stochprune.nn.masked_transposed import MaskedTransposedLinear, is_transformers_conv1d

Masked = type[MaskedLayer] | type[MaskedModule]

_LAYERS: tuple[Masked, ...] = (MaskedLinear, *CONVOLUTIONS, MaskedEmbedding)
MODULES: tuple[type[MaskedModule], ...] = (MaskedMultiheadAttention, *RECURRENT, MaskedBilinear)
_MASKED: dict[type[nn.Module], Masked] = {kind.dense_type: kind for kind in (*_LAYERS, *MODULES)}
_HARMLESS = {"__init__", "__doc__", "__module__", "__qualname__", "__annotations__", "__constants__", "__parameters__"}
_HARMLESS |= {"__static_attributes__", "__firstlineno__", "__orig_bases__", "__annotate_func__", "__annotate__"}
_HARMLESS |= {"__annotations_cache__", "extra_repr", "reset_parameters", "_reset_parameters"}


def register(dense_type: type[nn.Module], masked_type: Masked) -> None:
    """Let :func:`stochprune.convert` replace modules of a user's own type by a masked type.

    There are two kinds of masked types. A subclass of :class:`MaskedModule` names its weights and reuses the dense
    forward; it needs no more than three lines. A subclass of :class:`MaskedLinear` or of another masked layer has one
    weight, called ``weight``, and says how to compute with it; it saves no masked weight for backward. ``convert``
    calls the type's ``from_dense``, and ``harden`` goes back by ``to_dense``; both exist in the base classes.

    Args:
        dense_type: a subclass of torch.nn.Module. Its own subclasses are replaced too if they override nothing.
        masked_type: a subclass of :class:`stochprune.nn.MaskedModule` and of ``dense_type``, with ``dense_type`` and
            ``weights``; or a subclass of a masked layer, with ``dense_type``, ``settings`` (the names of the arguments
            of the dense constructor, which are attributes of both), ``_dense_forward(x, weight)`` and
            ``_masked_forward(x, **address)``.

    Raises:
        TypeError: not two types, or ones that are no dense and no masked module.
        ValueError: a masked type that lacks a part, which is named, or a dense type that another one stands for.
    """
    if not isinstance(dense_type, type) or not issubclass(dense_type, nn.Module) or dense_type is nn.Module:
        raise TypeError(f"register: dense_type must be a subclass of torch.nn.Module, got {dense_type!r}")
    if not isinstance(masked_type, type) or not issubclass(masked_type, MaskedLayer | MaskedModule):
        raise TypeError(
            f"register: masked_type must be a subclass of MaskedModule or of a masked layer such as MaskedLinear, got "
            f"{masked_type!r}"
        )
    if issubclass(dense_type, MaskedLayer | MaskedModule):
        raise TypeError(f"register: dense_type must be a dense module, got the masked {dense_type.__name__}")
    if missing := _missing(dense_type, masked_type):
        raise ValueError(f"register: {masked_type.__name__} cannot stand for {dense_type.__name__}: {missing}")
    if (other := _MASKED.get(dense_type, masked_type)) is not masked_type:
        raise ValueError(f"register: {other.__name__} stands for {dense_type.__name__} already")
    _MASKED[dense_type] = masked_type


def _missing(dense_type: type[nn.Module], masked_type: Masked) -> str | None:
    """Return what a masked type lacks; None if it is complete."""
    if getattr(masked_type, "dense_type", None) is not dense_type:
        return f"set its attribute dense_type = {dense_type.__name__}"
    if issubclass(masked_type, MaskedModule):
        if not issubclass(masked_type, dense_type):
            return f"it must inherit from {dense_type.__name__} too, after MaskedModule, whose forward comes first"
        if masked_type.forward is not MaskedModule.forward:
            return "its forward must be that of MaskedModule: name it before the dense type among the bases"
        names = getattr(masked_type, "weights", None)
        if masked_type.weight_names.__func__ is MaskedModule.weight_names.__func__ and not _are_names(names):  # type: ignore[attr-defined]
            return f"set its attribute weights to the names of its weights, such as ('weight',), got {names!r}"
        return None
    if not _are_names(getattr(masked_type, "settings", None)):
        return "set its attribute settings to the names of the constructor's arguments"
    for method in ("_dense_forward", "_masked_forward"):
        if getattr(masked_type, method) is getattr(MaskedLayer, method):
            return f"it has no {method}"
    return None


def _are_names(names: Any) -> bool:
    return isinstance(names, tuple) and all(isinstance(name, str) for name in names)


def base_of(module: nn.Module) -> type[nn.Module] | None:
    """Return the nearest type of a module that a masked type stands for, or None."""
    return next((kind for kind in type(module).__mro__ if kind in _MASKED), None)


def masked_type(module: nn.Module) -> Masked | None:
    """Return the masked type for a dense module: that of its nearest type which has one, or None."""
    if isinstance(module, MaskedLayer | MaskedModule):
        return None
    if is_transformers_conv1d(module):
        return MaskedTransposedLinear
    base = base_of(module)
    return None if base is None else _MASKED[base]


def overridden(kind: type, base: type) -> set[str]:
    """Return what a subclass and the types before its base define anew, without what cannot change a forward."""
    before = kind.__mro__[: kind.__mro__.index(base)]
    return {name for each in before for name in vars(each) if hasattr(base, name)} - _HARMLESS


def weights_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the weights of a masked module, and of a dense one that has a masked type, by name in the module.

    A weight is None if the module has no such parameter, because something computes it.
    """
    if isinstance(module, MaskedParameter):
        return {}  # its weight is its module's
    kind = type(module) if isinstance(module, MaskedLayer | MaskedModule) else masked_type(module)
    if kind is None:
        return {}
    names = kind.weight_names(module) if issubclass(kind, MaskedModule) else ("weight",)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {name: parameters.get(name) for name in names}
