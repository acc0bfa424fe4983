"""``stochprune report``."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Annotated

import typer

from stochprune.bench import KIND
from stochprune.report.html import SourceError, read_source, render, view_of
from stochprune.report.html.parts import View
from stochprune.report.html.suite import comparison_view
from stochprune.runs.files import CheckpointError


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or JSON files of results and benchmarks.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "stochprune report",
) -> None:
    """Write one HTML page for runs of finetune, certify, study, finetune-lm and bench.

    The page needs no network and no other file. A run that cannot be read is named on the page and on the standard
    error; the exit status is 1 only if no run can be shown. Two runs of the benchmark suite are also compared.
    """
    views, errors, suites = [], list[str](), []
    for path in runs:
        try:
            source = read_source(path)
            if os.path.realpath(out) == os.path.realpath(source.path):  # a loop of links is an OSError below
                raise ValueError(f"report: --out {out} is the file of a run, which the page would replace")
            views.append(view_of(source))
            suites += [source.path] if source.content.get("kind") == KIND else []
        except SourceError as error:
            errors.append(str(error))
    if len(suites) == 2:
        try:
            views.append(_compared(*suites))
        except (CheckpointError, ValueError) as error:
            errors.append(str(error))
    for text in errors:
        typer.echo(f"not shown: {text}", err=True)
    if not views:
        raise ValueError("report: none of the runs can be shown, so no page is written")
    # JSON and names of files may hold halves of characters, which UTF-8 does not have.
    out.write_text(render(views, errors, title=title), encoding="utf-8", errors="replace")
    typer.echo(out)


def _compared(a: Path, b: Path) -> View:
    comparison = importlib.import_module("stochprune.bench.compare")
    found = comparison.compare(comparison.read(a), comparison.read(b))
    return comparison_view("A and B", found.changes, [f"A is {a}, B is {b}.", *found.notes])
