"""The tables of ``stochprune doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stochprune.report.style import literal, terminal_table

if TYPE_CHECKING:
    from rich.table import Table


def doctor_tables(examination: Mapping[str, Any]) -> list[Table]:
    """Return the tables of backends, self-tests and problems of an examination; the last only if there are problems."""
    backends = terminal_table("Backends of this machine")
    for column in ("device", "backend", "works", "details"):
        backends.add_column(column)
    for state in examination["backends"]:
        backends.add_row(state["device"], state["name"], _mark(state["usable"]), literal(state["reason"]))
    tests = terminal_table("Self-tests of bits and gradients")
    for column in ("backend", "device", "passed", "seconds", "failures"):
        tests.add_column(column, justify="right" if column == "seconds" else "left")
    for test in examination["self_tests"]:
        seconds = f"{test['seconds']:.1f}"
        tests.add_row(
            test["backend"], test["device"], _mark(test["passed"]), seconds, literal("\n".join(test["failures"]))
        )
    problems = terminal_table("Problems")
    problems.add_column("what is wrong, and what to do")
    for problem in examination["problems"]:
        problems.add_row(literal(problem))
    return [backends, tests, *([problems] if examination["problems"] else [])]


def _mark(good: bool) -> str:
    return "[green]yes[/]" if good else "[red]no[/]"
