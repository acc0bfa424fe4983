"""``stochprune doctor``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from stochprune.doctor import bug_report, examine
from stochprune.report import doctor_tables


def doctor(
    plain: Annotated[bool, typer.Option("--plain", help="Print the block for a bug report only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Examine this installation: which backends work, a self-test of each, versions that do not fit.

    The exit status is 1 if a self-test fails.
    """
    examination = examine()
    if as_json:
        typer.echo(json.dumps(examination, indent=1))
    else:
        if not plain:
            for table in doctor_tables(examination):
                Console().print(table)
            typer.echo("\nFor a bug report, paste the following block.\n")
        typer.echo(bug_report(examination))
    if not examination["passed"]:
        raise typer.Exit(1)
