"""``stochprune study``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from stochprune import studies
from stochprune.cli.options import Device
from stochprune.report import study_markdown
from stochprune.studies import executors


def study(
    name: Annotated[str, typer.Argument(help=f"{', '.join(studies.SHIPPED)}, or a YAML file.")],
    small: Annotated[bool, typer.Option("--small", help="Run the file's small version: a minute on digits.")] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data set's files, or folder with one folder per data set.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    device: Device = "",
    executor: Annotated[str, typer.Option(help=f"Where cells run: {', '.join(executors.NAMES)}.")] = "local",
    workers: Annotated[int, typer.Option(help="The most cells that ray or slurm run at the same time.")] = 2,
    executor_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE of ray or slurm, such as gpus=1; may be repeated.")
    ] = None,
) -> None:
    """Run a grid of experiments.

    A study is a YAML file that lists models, data sets, scores, sparsities, ablations and seeds. Each configuration
    runs once, in a folder of its own. Run the same command again to continue a run that was stopped. Writes
    results.json, tables (CSV and Markdown) and pictures.
    """
    console = Console()
    chosen = executors.choose(executor, workers, executor_option or [])
    plan = studies.load(name, small)
    folder, results = studies.run(plan, data_dir=data_dir, out=out, device=device, executor=chosen)
    console.print(Markdown(study_markdown(results)))
    console.print(f"{folder}/results.json, {folder}/tables.md", highlight=False, soft_wrap=True, markup=False)
