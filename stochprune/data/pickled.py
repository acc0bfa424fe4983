"""A reader of pickles that contain only numbers, strings, integer arrays and their containers; it runs no code.

Python's own unpickler imports the names in a file, and its C code trusts the sizes that a file states. This reader
parses with :mod:`pickletools`, which runs nothing, and interprets the opcodes that a data file of protocol 2 to 5
needs. It replaces the few functions that such a file names by its own. So nothing is imported, and the memory used is
limited by the size of the file.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

MAX_OPCODES = 300_000
"""A batch of CIFAR-10 has 30,000 to 100,000."""
TEXTS = ("BINSTRING", "SHORT_BINSTRING")  # strings of Python 2, which are bytes
NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
OPCODES = {opcode.name: opcode for opcode in pickletools.opcodes}
STOP = OPCODES["STOP"].code.encode("latin-1")


def loads(content: bytes) -> Any:
    """Read the object in a pickle. Strings of Python 2 become bytes, arrays become ``numpy.ndarray`` of integers.

    Raises:
        ValueError: the pickle is damaged, or contains anything else.
    """
    try:
        return _Reader(content).read()
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"the pickle is damaged, or contains something other than numbers, text and arrays: {error}"
        ) from None


@dataclass
class _Type:
    """``numpy.dtype`` of integers."""

    code: str
    order: str = "="

    def set_state(self, state: tuple[Any, ...]) -> None:
        _, order, subtype, names, fields, *_ = state
        order = order.decode("ascii") if type(order) is bytes else order
        if order not in ("|", "<", ">", "=") or (subtype, names, fields) != (None, None, None):
            raise ValueError("an array of structures")
        self.order = order


@dataclass
class _Array:
    """``numpy.ndarray``; its content is checked against its shape when it is returned."""

    content: Any = None
    kind: _Type | None = None
    shape: Any = (0,)
    order: Any = "C"

    def set_state(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.kind, fortran, self.content = state
        if type(fortran) is not bool:
            raise ValueError("an array with an unknown memory order")
        self.order = "F" if fortran else "C"

    def array(self) -> np.ndarray:
        """A read-only view of the content."""
        if type(self.content) not in (bytes, bytearray) or type(self.kind) is not _Type or self.order not in ("C", "F"):
            raise ValueError("an array without bytes or type")
        if type(self.shape) is not tuple or not all(type(size) is int and size >= 0 for size in self.shape):
            raise ValueError("an array with an impossible shape")
        dtype = np.dtype(self.kind.code).newbyteorder(self.kind.order)  # type: ignore[arg-type]
        if len(self.shape) > 8 or math.prod(self.shape) * dtype.itemsize != len(self.content):
            raise ValueError(f"an array of {len(self.content)} bytes, which do not match its shape")
        return np.frombuffer(self.content, dtype).reshape(self.shape, order=self.order)


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.spare = content, len(content)
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.functions = {name: getattr(self, method) for name, method in FUNCTIONS.items()}

    def read(self) -> Any:
        source = io.BytesIO(self.content)
        steps = {
            OPCODES[name].code.encode("latin-1"): (OPCODES[name].arg, action) for name, action in self.actions().items()
        }
        for code in islice(iter(partial(source.read, 1), STOP), MAX_OPCODES):
            argument, action = steps[code]
            action(argument.reader(source) if argument else None)
        if source.read(1) or len(self.stack) != 1 or self.marks:
            raise ValueError(f"it does not end with one object after at most {MAX_OPCODES} steps")
        return _given_out(self.stack[0])

    def actions(self) -> dict[str, Callable[[Any], None]]:
        """Return what each opcode does with its argument, by the opcode's name. All other opcodes are refused."""
        push, last, marked = self.stack.append, self.last, self.marked
        return {
            **dict.fromkeys(("PROTO", "FRAME"), lambda _: None),
            **dict.fromkeys((*NUMBERS, *STRINGS), push),
            **dict.fromkeys(TEXTS, lambda text: push(text.encode("latin-1"))),
            "NONE": push,
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "EMPTY_LIST": lambda _: push([]),
            "EMPTY_DICT": lambda _: push({}),
            "EMPTY_TUPLE": lambda _: push(()),
            "TUPLE1": lambda _: push(tuple(last(1))),
            "TUPLE2": lambda _: push(tuple(last(2))),
            "TUPLE3": lambda _: push(tuple(last(3))),
            "TUPLE": lambda _: push(tuple(marked())),
            "MARK": lambda _: self.marks.append(len(self.stack)),
            "APPEND": lambda _: self.extend(last(1)),
            "APPENDS": lambda _: self.extend(marked()),
            "SETITEM": lambda _: self.update(last(2)),
            "SETITEMS": lambda _: self.update(marked()),
            "MEMOIZE": lambda _: self.memoize(len(self.memo)),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self.memoize),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda key: push(self.memo[key])),
            "GLOBAL": lambda names: push(self.function(*names.split(" "))),
            "STACK_GLOBAL": lambda _: push(self.function(*last(2))),
            "REDUCE": lambda _: push(self.call(*last(2))),
            "BUILD": lambda _: self.build(*last(1)),
        }

    def memoize(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def update(self, items: list[Any]) -> None:
        if not all(type(key) in (bytes, str) for key in items[::2]):  # hashing a tuple may take very long
            raise ValueError("a key that is not text")
        self.top(dict).update(zip(items[::2], items[1::2], strict=True))

    def call(self, function: Any, arguments: Any) -> Any:
        if not callable(function) or type(arguments) is not tuple:
            raise ValueError("a call of something that is not a function")
        return function(*arguments)

    def build(self, state: Any) -> None:
        if type(state) is not tuple:
            raise ValueError("a state that is not a tuple")
        self.top(_Array, _Type).set_state(state)

    def last(self, count: int) -> list[Any]:
        """Pop the last ``count`` objects above the last mark."""
        if len(self.stack) - count < (self.marks[-1] if self.marks else 0):
            raise ValueError("too few objects")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def marked(self) -> list[Any]:
        """Pop the objects above the last mark, and the mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self, *kinds: type) -> Any:
        if type(self.stack[-1]) not in kinds:
            raise ValueError(f"an operation on {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def function(self, module: Any, name: Any) -> Callable[..., Any]:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a global without a name")
        if (module, name) not in self.functions:
            raise ValueError(f"{module:.60}.{name:.60} is not allowed in a data file")
        return self.functions[module, name]

    def encode(self, text: Any, codec: Any) -> bytes:
        """Replace ``_codecs.encode``, with which protocol 2 of Python 3 writes bytes."""
        if type(text) is not str or codec != "latin1":
            raise ValueError("an encoding that is not latin1")
        self.spare -= len(text)
        if self.spare < 0:  # the same text, encoded many times
            raise ValueError("more bytes than the file has")
        return text.encode("latin-1")

    def ndarray(self, *_: Any) -> None:
        raise ValueError("a call of numpy.ndarray")

    def dtype(self, code: Any, align: Any, copy: Any) -> _Type:
        if type(code) is bytes:
            code = code.decode("ascii")
        if type(code) is not str or not re.fullmatch(r"[iu][1248]", code):
            raise ValueError("an array of something other than integers")
        return _Type(code)

    def reconstruct(self, kind: Any, shape: Any, code: Any) -> _Array:
        if kind != self.ndarray:
            raise ValueError("an array of another class")
        return _Array()

    def frombuffer(self, content: Any, kind: Any, shape: Any, order: Any) -> _Array:
        return _Array(content, kind, shape, order)


FUNCTIONS = {
    ("_codecs", "encode"): "encode",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    **{(f"numpy.{core}.multiarray", "_reconstruct"): "reconstruct" for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): "frombuffer" for core in ("core", "_core")},
}
"""Globals that a file may name, by module and name, and the method that replaces each."""


def _given_out(made: Any) -> Any:
    """Return the object with its arrays converted, on the two levels that data files have."""
    if type(made) is dict:
        return {key: value.array() if type(value) is _Array else value for key, value in made.items()}
    return made.array() if type(made) is _Array else made
