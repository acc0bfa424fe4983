"""``stochprune backends``."""

from __future__ import annotations

import typer

import stochprune


def backends() -> None:
    """Print which backend serves which device, and why."""
    typer.echo(stochprune.backends.table())
