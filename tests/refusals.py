"""Tables of what functions refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

Row = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]
"""The arguments and options of a call, the error, and a pattern of what its message names."""


def each_row(table: Mapping[str, Sequence[Row]]) -> pytest.MarkDecorator:
    """Run a test with the arguments ``name`` and ``row`` for each row of a table, which maps names to rows."""
    rows = [(name, row) for name, rows in table.items() for row in rows]
    return pytest.mark.parametrize(("name", "row"), rows, ids=[f"{name} {row[3]}" for name, row in rows])
