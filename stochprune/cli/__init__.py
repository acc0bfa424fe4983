"""The command line: ``stochprune COMMAND``. Each command is a module of this package."""

from __future__ import annotations

from typing import Annotated

import stochprune
from stochprune.extras import extra

with extra("studies", "the command line"):
    import typer

from stochprune.cli.backends import backends
from stochprune.cli.bench import bench
from stochprune.cli.bounds import bounds
from stochprune.cli.certify import certify
from stochprune.cli.doctor import doctor
from stochprune.cli.finetune import finetune
from stochprune.cli.finetune_lm import finetune_lm
from stochprune.cli.linear_lab import linear_lab
from stochprune.cli.options import one_line_ends
from stochprune.cli.plan import plan
from stochprune.cli.report import report
from stochprune.cli.study import study

app = typer.Typer(
    help="Stochastic pruning masks that are sampled where they are used and never stored.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(stochprune.__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for command in (finetune, finetune_lm, certify, plan, study, linear_lab, bounds, report, backends, doctor):
    app.command()(one_line_ends(command))
app.add_typer(bench, name="bench")
