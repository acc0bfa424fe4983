"""``stochprune backends``."""

from __future__ import annotations

import typer

import stochprune


def backends() -> None:
    """Print which backend serves which device."""
    typer.echo(stochprune.backends.table())
