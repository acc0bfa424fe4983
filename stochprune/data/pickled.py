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
from typing import Any

import numpy as np

MAX_OPCODES = 300_000
"""A batch of CIFAR-10 has 30,000 to 100,000."""
TEXTS = ("BINSTRING", "SHORT_BINSTRING")  # strings of Python 2, which are bytes
NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
SINGLE = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
OPCODES = {
    opcode.code.encode("latin-1"): opcode
    for opcode in pickletools.opcodes
    if opcode.name in {*NUMBERS, *STRINGS, *TEXTS, *SINGLE, *TUPLES}
    or opcode.name in ("EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS")
    or opcode.name in ("MARK", "TUPLE", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET")
    or opcode.name in ("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "PROTO", "FRAME", "STOP")
}


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
        for _ in range(MAX_OPCODES):
            opcode = OPCODES[source.read(1)]
            self.step(opcode.name, opcode.arg.reader(source) if opcode.arg else None)
            if opcode.name == "STOP":
                break
        if source.read(1) or len(self.stack) != 1 or self.marks:
            raise ValueError(f"it does not end with one object after at most {MAX_OPCODES} steps")
        return _given_out(self.stack[0])

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in NUMBERS or name in STRINGS:
            stack.append(argument)
        elif name in TEXTS:
            stack.append(argument.encode("latin-1"))
        elif name in SINGLE:
            stack.append(SINGLE[name])
        elif name in ("EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT"):
            stack.append({"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}[name]())
        elif name in TUPLES:
            stack.append(tuple(self.last(TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self.marked()))
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("APPEND", "APPENDS"):
            items = self.last(1) if name == "APPEND" else self.marked()
            self.top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.last(2) if name == "SETITEM" else self.marked()
            if not all(type(key) in (bytes, str) for key in items[::2]):  # hashing a tuple may take very long
                raise ValueError("a key that is not text")
            self.top(dict).update(zip(items[::2], items[1::2], strict=True))
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            stack.append(self.function(*argument.split(" ")))
        elif name == "STACK_GLOBAL":
            stack.append(self.function(*self.last(2)))
        elif name == "REDUCE":
            function, arguments = self.last(2)
            if not callable(function) or type(arguments) is not tuple:
                raise ValueError("a call of something that is not a function")
            stack.append(function(*arguments))
        elif name == "BUILD":
            (state,) = self.last(1)
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
