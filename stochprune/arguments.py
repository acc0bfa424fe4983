"""Checks of arguments by their annotations, for all public functions and all configurations."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import numbers
import reprlib
import sys
import types
from collections.abc import Callable
from typing import Annotated, Any, ForwardRef, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])

WORDS = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("True or False", "values True or False"),
    bytes: ("bytes", "values of bytes"),
    list: ("a list", "lists"),
    dict: ("a mapping", "mappings"),
    tuple: ("a tuple", "tuples"),
    set: ("a set", "sets"),
    frozenset: ("a set", "sets"),
    type: ("a class", "classes"),
    object: ("an object", "objects"),
    Any: ("an object", "objects"),
    Tensor: ("a dense and real torch.Tensor with values", "dense and real torch.Tensors with values"),
    None: ("None", "None"),
    type(None): ("None", "None"),
    collections.abc.Callable: ("a function", "functions"),
    collections.abc.Mapping: ("a mapping", "mappings"),
    collections.abc.Sequence: ("a sequence", "sequences"),
    collections.abc.Collection: ("a collection", "collections"),
    collections.abc.Iterable: ("an iterable", "iterables"),
    collections.abc.Iterator: ("an iterator", "iterators"),
}
"""One value of a type, and several of them."""


def checked(function: Function) -> Function:
    """Return the function with a check of its arguments before each call. It is too slow for hot loops.

    A wrong argument raises TypeError; the message names the function, the argument, its value and what it must be.
    Properties that an annotation does not describe, such as the items of an iterator, are not checked.
    """

    @functools.cache
    def kinds() -> inspect.Signature:  # evaluated at the first call: an annotation may use a name that is defined later
        return inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        signature = kinds()
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # raises the same error, and names the function
        for name, value in given.items():
            parameter = signature.parameters[name]
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                check(function.__qualname__.removesuffix(".__init__"), name, parameter.annotation, value, TypeError)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def check_fields(record: Any) -> None:
    """Check every field of a dataclass against its annotation. Every configuration calls this first.

    Numbers of numpy become numbers of Python, so that they can be written to JSON and hashed.

    Raises:
        ValueError: a value has another type, is NaN or infinite, or is an unknown choice. The message names the field
            and the value.
    """
    for name, kind in get_type_hints(type(record)).items():
        value = getattr(record, name)
        what = type(record).__name__
        check(what, name, kind, value, ValueError)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise ValueError(f"{what}: {name} must be {in_words(kind)}, got {shown(value)}")
        if not all(is_finite(item) for item in (value if isinstance(value, tuple) else (value,))):
            finite = in_words(kind).replace("number", "finite number")
            raise ValueError(f"{what}: {name} must be {finite}, got {shown(value)}")
        if isinstance(value, np.generic):
            object.__setattr__(record, name, value.item())


def check(what: str, name: str, kind: Any, value: Any, error: type[Exception]) -> None:
    """Raise ``error`` if the value does not have the annotated type."""
    if not fits(kind, value):
        raise error(f"{what}: {name} must be {in_words(kind)}, got {shown(value)}")


def shown(value: Any) -> str:
    """Return a value as a short text on one line, for a message; a tensor is shown by its dtype and shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = type(value).__name__
        if isinstance(value, Tensor):
            kind = "sparse " * (value.layout != torch.strided) + "meta " * value.is_meta + kind
        return f"{kind} {value.dtype} {tuple(value.shape)}"
    return " ".join(reprlib.repr(value).split())


def fits(kind: Any, value: Any) -> bool:
    """Return True if a value has the annotated type, as far as the annotation describes it."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, TypeVar):
        return any(fits(part, value) for part in kind.__constraints__ or (kind.__bound__ or Any,))
    if kind in (Any, inspect.Parameter.empty) or isinstance(kind, (str, ForwardRef)):
        return True
    if origin in (Union, types.UnionType):
        return any(fits(part, value) for part in inner)
    if origin is Literal:
        return any(type(value) is type(choice) for choice in inner)  # the function itself refuses an unknown choice
    if kind is float:
        return _is(numbers.Real, value) and not (isinstance(value, int) and abs(value) > sys.float_info.max)
    if kind is int:
        return _is(numbers.Integral, value)
    if kind is Tensor:
        dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        return dense and not value.is_complex()
    if origin is collections.abc.Callable:
        return callable(value)
    if isinstance(origin, type):
        return isinstance(value, origin) and _items_fit(origin, inner, value)
    return (kind is None and value is None) or (isinstance(kind, type) and isinstance(value, kind))


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Return False for NaN, infinity and minus infinity, and True for all other values."""
    return not isinstance(value, (float, np.floating)) or math.isfinite(value)


def _items_fit(origin: type, inner: tuple[Any, ...], value: Any) -> bool:
    if issubclass(origin, collections.abc.Mapping):
        return all(fits(inner[0], key) and fits(inner[1], item) for key, item in value.items())
    if issubclass(origin, tuple) and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(fits(*pair) for pair in zip(inner, value, strict=True))
    if issubclass(origin, collections.abc.Sequence):
        return all(fits(inner[0], item) for item in value)
    return True  # to look at an iterator would use it up


def in_words(kind: Any, *, several: bool = False) -> str:
    """Return an annotation in words: ``a list of integers`` or, of several values, ``lists of integers``."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, TypeVar):
        return _either(kind.__constraints__ or (kind.__bound__ or object,), several)
    if origin is Annotated:
        return in_words(inner[0], several=several)
    if origin is Literal:
        choices = f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0])
        return f"values that are {choices}" if several else choices
    if origin in (Union, types.UnionType):
        return _either(inner, several)
    name = _name(origin or kind, several)
    if isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        return f"{name} from {in_words(inner[0], several=True)} to {in_words(inner[1], several=True)}"
    if isinstance(origin, type) and issubclass(origin, tuple) and inner[-1] is not Ellipsis:
        alike = len({*inner}) == 1
        return f"{name} of {len(inner)} {in_words(inner[0], several=True)}" if alike else f"{name} of {_list(inner)}"
    if isinstance(origin, type) and issubclass(origin, collections.abc.Iterable) and origin in WORDS:
        return f"{name} of {in_words(inner[0], several=True)}"
    return name


def _name(kind: Any, several: bool) -> str:
    """Return a type without its parameters in words."""
    if kind in WORDS:
        return WORDS[kind][several]
    if not isinstance(kind, type):
        return str(kind)
    name = f"{kind.__module__.split('.')[0]}.{kind.__qualname__}".removeprefix("builtins.")
    return f"instances of {name}" if several else f"an instance of {name}"


def _either(kinds: tuple[Any, ...], several: bool) -> str:
    words = " or ".join(dict.fromkeys(in_words(kind, several=several) for kind in kinds))
    return f"({words})" if several and " or " in words else words


def _list(kinds: tuple[Any, ...]) -> str:
    *first, last = [in_words(kind) for kind in kinds]
    return f"{', '.join(first)} and {last}"
