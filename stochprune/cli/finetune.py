"""``stochprune finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from stochprune import report
from stochprune.cli.options import Device, configured, options_from
from stochprune.runs import ranks
from stochprune.studies.finetune import FALLING, StudyConfig, run_study


# A study sets the seeds and the sparsities.
@options_from({StudyConfig: "Study", FALLING: "Mask fine-tuning"}, without=("seed", "sparsity"))
def finetune(
    *,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    device: Device = "",
    **values: Any,
) -> None:
    """Fine-tune pruning masks and compare with weight training.

    Trains dense networks and prunes them with each score at each sparsity. Fine-tunes the probabilities of the masks,
    prunes to the same sparsity, and trains the weights. Reports the test errors, those of weight training under the
    first mask for as many epochs, and those of a shuffled mask. Run the same command again to continue a run that was
    stopped. Writes results.json and results.png. Under torchrun or accelerate launch the processes share the work.
    """
    console, config = Console(), configured(StudyConfig, values)
    with ranks.joined():
        folder, results = run_study(config, data_dir=data_dir, out=out, device=device)
        if not ranks.is_first():
            return
    report.plot_finetune(results, folder / "results.png")
    console.print(report.finetune_table(results))
    console.print(f"{folder}/results.json, {folder}/results.png", highlight=False, soft_wrap=True, markup=False)
