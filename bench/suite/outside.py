"""Contenders of your own: ``stochprune bench run --contenders module:attribute``."""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from .case import Op, is_eager, is_ours
from .ops.layer import LayerOp


def with_contenders(ops: Mapping[str, Op], given: str) -> tuple[dict[str, Op], dict[str, str]]:
    """Return ops with additional contenders, and a digest of the file that defines them.

    Args:
        ops: of the suite, by name.
        given: ``module:attribute``, or an empty text for none. The attribute is a mapping from the names of ops to
            mappings from the names of contenders to pairs: a law of the op, and a function that makes the contender,
            see :data:`.ops.layer.Make`. It may raise :class:`.case.Absent`.

    Raises:
        ValueError: the module cannot be imported, or the attribute is something else; an unknown op or law; a name that
            the op has, or that begins with ``ours`` or ``eager``.
    """
    if not given:
        return dict(ops), {}
    name, _, attribute = given.partition(":")
    try:
        module = importlib.import_module(name)
        found = getattr(module, attribute)
        source = inspect.getsource(module)
    except Exception as error:  # the module of a user may raise anything
        said = " ".join(str(error).split())[:300]
        raise ValueError(
            f"contenders: {given!r:.200} must be module:attribute of a Python file: {type(error).__name__}: {said}; "
            "the folder of the module must be on PYTHONPATH"
        ) from error
    extended = dict(ops)
    for op, contenders in _mapping(given, found).items():
        extended[op] = _extended(given, ops.get(op), op, _mapping(f"{given}, {op}", contenders))
    return extended, {"contenders": hashlib.blake2s(source.encode()).hexdigest()[:8]}


def _extended(where: str, op: Op | None, name: str, contenders: Mapping[Any, Any]) -> LayerOp:
    """Return a copy of an op that has these contenders too."""
    if not isinstance(op, LayerOp):
        raise ValueError(
            f"contenders: {where}: {name!r:.100} is not an op that takes contenders; these are layers only"
        )
    new, laws = copy.copy(op), {*op.laws.values()}
    for contender, pair in contenders.items():
        what = f"contenders: {where}: {contender!r:.100} of {name}"
        if not isinstance(contender, str) or not contender.isprintable() or not contender:
            raise ValueError(f"{what} must be a text")
        if contender in new.laws or is_ours(contender) or is_eager(contender):
            raise ValueError(f"{what} has the name of a contender of the suite; choose another one")
        if not isinstance(pair, tuple) or len(pair) != 2 or not callable(pair[1]):
            raise ValueError(f"{what} must be a pair of a law and a function, got {pair!r:.100}")
        if pair[0] not in laws:
            raise ValueError(f"{what}: unknown law {pair[0]!r:.100}; the op has {', '.join(sorted(laws))}")
        new.laws = {**new.laws, contender: pair[0]}
        new.others = {**new.others, contender: pair[1]}
    return new


def _mapping(where: str, found: Any) -> Mapping[Any, Any]:
    if not isinstance(found, Mapping):
        raise ValueError(f"contenders: {where} must be a mapping, got {type(found).__name__}")
    return found
