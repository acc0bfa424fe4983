"""``stochprune finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from stochprune import report
from stochprune.cli.options import Device, configured, options_from
from stochprune.studies.finetune import StudyConfig, run_study
from stochprune.training import FinetuneConfig


@options_from({StudyConfig: "Study", FinetuneConfig: "Mask fine-tuning"}, without=("seed",))  # a study sets the seeds
def finetune(
    *,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    device: Device = "",
    **values: Any,
) -> None:
    """Fine-tune pruning masks, and compare.

    Trains dense networks, prunes them by each score at each sparsity, fine-tunes the masks as probabilities, cuts them
    to the same sparsity, and reports errors beside those of weight training for as many epochs and of a shuffled mask.
    Done work is kept: a run that was stopped goes on when started again. Writes results.json and results.png.
    """
    console = Console()
    folder, results = run_study(configured(StudyConfig, values), data_dir=data_dir, out=out, device=device)
    report.plot_finetune(results, folder / "results.png")
    console.print(report.finetune_table(results))
    console.print(f"{folder}/results.json, {folder}/results.png", highlight=False, soft_wrap=True, markup=False)
