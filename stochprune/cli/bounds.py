"""``stochprune bounds``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stochprune.cli.options import Device, configured, options_from
from stochprune.theory.bounds_config import BoundsConfig
from stochprune.theory.compare import run_bounds
from stochprune.theory.compare_figure import draw

ABOUT = {
    "Neyshabur 2015": "Frobenius norms",
    "Bartlett 2017": "spectral and (2,1) norms",
    "Neyshabur 2017": "spectral and Frobenius norms",
    "Arora 2018": "cushions, on a few examples",
    "Guha 2023": "sketch of the compressed layers",
    "counting": "code of a compressed network",
    "PAC-Bayes certificate": "random masks of the same weights",
    "held-out examples alone": "the network itself",
}


@options_from({BoundsConfig: "Bounds"})
def bounds(
    *,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    device: Device = "",
    **values: Any,
) -> None:
    """Every bound on one network, and which of them say nothing.

    Trains a fully connected network without biases; compresses it by magnitude at several scales, prunes it in rounds,
    recovers sparse matrices from sketches; and tables norm-based, compression, counting and PAC-Bayes bounds. Done work
    is kept: a run that was stopped goes on when started again. Writes results.json and results.png;
    docs/theory-compression.md explains them.
    """
    console = Console()
    folder, results = run_bounds(configured(BoundsConfig, values), data_dir=data_dir, out=out, device=device)
    draw(results, folder / "results.png")
    console.print(table(results))
    console.print(f"{folder}/results.json, {folder}/results.png", highlight=False, soft_wrap=True, markup=False)


def table(results: dict[str, Any]) -> Table:
    """Bounds on the risk; a value above 1 says nothing."""
    made = Table(
        title=f"Bounds on the risk; test error {results['test_error']:.4f}, training error "
        f"{results['train_error']:.4f}, margin {results['margin']:.3g}",
        caption="Complete: it holds with its probability as it stands. Order: constants and logarithms are left out, "
        "so that only a value far from 1 means something. Vacuous: 1 or more.",
        caption_justify="left",
    )
    for name, justify in (("bound", "left"), ("by", "left"), ("value", "right"), ("", "left"), ("", "left")):
        made.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in results["bounds"]:
        value = row["value"]
        said = "[red]vacuous[/red]" if value >= 1 else "[green]says something[/green]"
        shown = f"{value:.4f}" if value < 10 else f"{value:.3g}"
        made.add_row(row["name"], ABOUT[row["name"]], shown, "complete" if row["complete"] else "order", said)
    return made
