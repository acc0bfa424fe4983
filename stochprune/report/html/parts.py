"""The parts of a page as values: tables, figures with their text alternative, and the view of one run.

They hold plain texts and numbers. The template escapes all of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST_ROWS = 2000
"""Rows of a table that a page shows."""
MOST_COLUMNS = 30
MOST_PANELS = 36
"""Charts of a figure that a page shows."""
MOST_SERIES = 8
"""Masks or histories that a figure shows."""
MOST_DEPTH = 20
"""Levels of a nested result that a page shows."""
MOST_CHARACTERS = 200
"""Characters of a text from a result file that a page shows."""
Cell = str | float | int | bool | None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that sorts. A page shows its first :data:`MOST_ROWS` rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __bool__(self) -> bool:
        return bool(self.rows)

    @property
    def shown(self) -> Sequence[Sequence[Cell]]:
        """The rows that a page shows."""
        return self.rows[:MOST_ROWS]

    def numeric(self) -> list[bool]:
        """Return for each column whether all of its values are numbers or missing."""
        return [all(row[i] is None or is_number(row[i]) for row in self.rows) for i in range(len(self.columns))]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One chart: a Vega-Lite specification, with a title if the figure has several."""

    spec: Mapping[str, Any]
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
    """One bitmap: the data URI of a PNG, its description and its caption."""

    uri: str
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Figure:
    """Charts or pictures that show one thing.

    Attributes:
        about: what is seen, in sentences.
        table: the same numbers, the alternative for readers who do not see the charts; pictures have ``alt``.
    """

    title: str
    about: str
    panels: Sequence[Panel] = ()
    pictures: Sequence[Picture] = ()
    table: Table | None = None
    wide: bool = False  # the charts have long names beside their axes

    @property
    def shown(self) -> Sequence[Panel]:
        """The charts that a page shows."""
        return self.panels[:MOST_PANELS]


@dataclasses.dataclass(frozen=True)
class View:
    """Everything that a page shows of one run.

    Attributes:
        facts: configuration and versions, by dotted name.
        notes: what the run does not hold, and where to get it.
    """

    name: str
    kind: str
    facts: Mapping[str, Cell]
    figures: Sequence[Figure]
    tables: Sequence[Table]
    notes: Sequence[str] = ()


def is_number(value: Any) -> bool:
    """Return True for finite integers and floating-point numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def short(value: Any) -> str:
    """Return a value as a text of at most :data:`MOST_CHARACTERS` characters."""
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def cell(value: Any) -> Cell:
    """Return what a table shows of a value from a result file."""
    return value if value is None or isinstance(value, bool) or is_number(value) else short(value)


def table_of(title: str, records: Iterable[Any]) -> Table:
    """Return a table of mappings, one column for each key; nested mappings become dotted names, lists are left out."""
    flat = [flattened(record) for record in records if isinstance(record, Mapping)]
    columns = list(dict.fromkeys(key for record in flat for key in record))[:MOST_COLUMNS]
    rows = [[record.get(key) for key in columns] for record in flat]
    return Table(title, [short(key) for key in columns], rows)


def flattened(record: Mapping[str, Any], prefix: str = "", depth: int = MOST_DEPTH) -> dict[str, Cell]:
    """Return the values of a mapping by dotted name, without lists of more than eight values or of mappings.

    Mappings below ``depth`` levels are left out.
    """
    found: dict[str, Cell] = {}
    for key, value in record.items():
        name = f"{prefix}{short(key)}"
        if isinstance(value, Mapping):
            if depth > 1:
                found |= flattened(value, f"{name}.", depth - 1)
        elif not isinstance(value, list):
            found[name] = cell(value)
        elif len(value) <= 8 and not any(isinstance(item, dict | list) for item in value):
            found[name] = short(", ".join(map(str, value)))
    return found
