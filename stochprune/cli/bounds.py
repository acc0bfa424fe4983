"""``stochprune bounds``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from stochprune.cli.options import Device, configured, options_from
from stochprune.report import bounds_table, plot_bounds
from stochprune.theory.bounds_config import BoundsConfig
from stochprune.theory.compare import run_bounds


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
    folder, results = run_bounds(configured(BoundsConfig, values), data_dir=data_dir, out=out, device=device)
    plot_bounds(results, folder / "results.png")
    console.print(bounds_table(results))
    console.print(f"{folder}/results.json, {folder}/results.png", highlight=False, soft_wrap=True, markup=False)
