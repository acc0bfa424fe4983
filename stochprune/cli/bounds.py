"""``stochprune bounds``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stochprune.cli.options import Device, options_from, split
from stochprune.theory.compare import BoundsConfig, run_bounds
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
    """Compute many bounds on the risk of one network, and show which are vacuous.

    Trains a fully connected network without biases, compresses it by magnitude at several scales, prunes it in rounds,
    and recovers sparse matrices from sketches. Prints a table of norm-based, compression, counting and PAC-Bayes
    bounds. Run the same command again to continue a run that was stopped. Writes results.json and results.png, which
    docs/theory-compression.md explains.
    """
    console = Console()
    values["scales"] = split("scales", values["scales"], float)
    values["sketch_sizes"] = split("sketch_sizes", values["sketch_sizes"], int)
    folder, results = run_bounds(BoundsConfig(**values), data_dir=data_dir, out=out, device=device)
    draw(results, folder / "results.png")
    console.print(table(results))
    console.print(f"{folder}/results.json, {folder}/results.png", highlight=False, soft_wrap=True, markup=False)


def table(results: dict[str, Any]) -> Table:
    """Return the table of bounds on the risk. A bound of 1 or more is vacuous."""
    made = Table(
        title=f"Bounds on the risk; test error {results['test_error']:.4f}, training error "
        f"{results['train_error']:.4f}, margin {results['margin']:.3g}",
        caption="Complete: the bound holds with its probability, exactly as computed. Order: constants and logarithms "
        "are left out, so only a value far from 1 means something. Vacuous: 1 or more.",
        caption_justify="left",
    )
    for name, justify in (("bound", "left"), ("by", "left"), ("value", "right"), ("", "left"), ("", "left")):
        made.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in results["bounds"]:
        value = row["value"]
        said = "[red]vacuous[/red]" if value >= 1 else "[green]non-vacuous[/green]"
        shown = f"{value:.4f}" if value < 10 else f"{value:.3g}"
        made.add_row(row["name"], ABOUT[row["name"]], shown, "complete" if row["complete"] else "order", said)
    return made
