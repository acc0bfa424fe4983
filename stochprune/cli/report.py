"""``stochprune report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stochprune.report.html import SourceError, read_source, render, view_of


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or JSON files of results and benchmarks.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "stochprune report",
) -> None:
    """Write one HTML page for runs of finetune, certify, study, finetune-lm and bench.

    The page needs no network and no other file. A run that cannot be read is named on the page and on the standard
    error; the exit status is 1 only if no run can be shown.
    """
    views, errors = [], []
    for path in runs:
        try:
            views.append(view_of(read_source(path)))
        except SourceError as error:
            errors.append(str(error))
            typer.echo(f"not shown: {error}", err=True)
    if not views:
        raise ValueError("report: none of the runs can be shown, so no page is written")
    # JSON and names of files may hold halves of characters, which UTF-8 does not have.
    out.write_text(render(views, errors, title=title), encoding="utf-8", errors="replace")
    typer.echo(out)
