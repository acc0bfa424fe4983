"""Configurations: dataclasses whose fields carry a help text and a range.

The options and help of the command line, the checks and the names of run folders are made from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stochprune.arguments import check_fields
from stochprune.runs.digests import json_digest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LIMIT = 1 << 64
"""Integers of a configuration are below this limit: seeds must be, and files contain no larger integers."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a field may have: the end of the sentence "the field must ...", and a test of one value."""

    words: str
    holds: Callable[[Any], bool]

    def require(self, record: object, name: str) -> None:
        """Raise ``ValueError`` unless the field ``name`` of ``record``, or each item of a tuple, lies in the range."""
        value, what = getattr(record, name), type(record).__name__
        each = "each " if isinstance(value, tuple) else ""
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int) and item >= LIMIT:
                raise ValueError(f"{what}: {name} must {each}be below 2^64, got {item}")
            if not self.holds(item):
                raise ValueError(f"{what}: {name} must {each}{self.words}, got {item}")


POSITIVE = Range("be positive and finite", lambda value: value > 0)
NOT_NEGATIVE = Range("be at least 0 and finite", lambda value: value >= 0)
PROBABILITY = Range("lie strictly between 0 and 1", lambda value: 0 < value < 1)
FRACTION = Range("lie in [0, 1)", lambda value: 0 <= value < 1)


def at_least(least: int) -> Range:
    """Return the range of the integers from ``least`` on."""
    return Range(f"be an integer of at least {least}", lambda value: value >= least)


def at_most(most: float) -> Range:
    """Return the range of the positive numbers up to ``most``."""
    return Range(f"lie in (0, {most:g}]", lambda value: 0 < value <= most)


def option(default: Any, help: str, within: Range | None = None) -> Any:
    """Return a dataclass field with a help text and, if it has one, the range of its values."""
    return dataclasses.field(default=default, metadata={"help": help, "range": within})


@dataclasses.dataclass(frozen=True)
class Config:
    """A configuration: its fields are made by :func:`option`, or are configurations themselves.

    Raises:
        ValueError: a value of another kind or outside its range, an unknown choice, an integer of 2^64 or more, a tuple
            that is empty or names a value twice. The message names the class, the field and the value.
    """

    def __post_init__(self) -> None:
        check_fields(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
                given = ", ".join(map(str, value)) or "none"
                raise ValueError(f"{type(self).__name__}: {field.name} must name at least one, each once, got {given}")
            if (within := field.metadata.get("range")) is not None:
                within.require(self, field.name)


def digest(config: DataclassInstance, exclude: tuple[str, ...] = ()) -> str:
    """Return twelve hexadecimal digits that change with the value of any field not in ``exclude``."""
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in exclude}
    return json_digest({"class": type(config).__name__, **values})[:12]
