"""``stochprune linear-lab``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from stochprune.cli.options import configured, options_from
from stochprune.report import linear_lab_table, plot_linear_lab
from stochprune.theory.lab import LinearLabConfig, run_lab


@options_from({LinearLabConfig: "Linear lab"})
def linear_lab(
    *,
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    **values: Any,
) -> None:
    """Train masks of a linear model and compare with closed forms.

    Computes the gradient flow and the discrete training of the probabilities with each estimator, pruning by alignment
    with the labels, the L1 paths of masks and the L2 paths of dropout, and PAC-Bayes certificates against the change of
    alignment. Takes seconds. Writes results.json and four pictures, which docs/theory-linear.md explains.
    """
    console = Console()
    folder, results = run_lab(configured(LinearLabConfig, values), out)
    plot_linear_lab(results, folder)
    console.print(linear_lab_table(results))
    console.print(f"{folder}/results.json and four pictures", highlight=False, soft_wrap=True, markup=False)
