"""``stochprune finetune-lm``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown

from stochprune.cli.options import Device, configured, options_from
from stochprune.report import study_markdown
from stochprune.runs import ranks
from stochprune.studies import finetune_lm as work


@options_from({work.FinetuneLMConfig: "Pruning"})
def finetune_lm(
    *,
    model: Annotated[Path, typer.Option(help="Folder of a causal model of transformers and its tokeniser.")],
    data: Annotated[Path, typer.Option(help="A UTF-8 text, or a folder of .txt files.")],
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    device: Device = "",
    **values: Any,
) -> None:
    """Fine-tune the pruning masks of a language model.

    Computes scores on the text, fine-tunes the masks, prunes, and exports the model as plain files with exact zeros.
    Reports the perplexity on the end of the text, before and after, beside magnitude pruning, Wanda, SparseGPT and ADMM
    at the same sparsity. Run the same command again to continue a run that was stopped. Writes results.json and tables.
    Under torchrun or accelerate launch the processes share the work.
    """
    console = Console()
    config = configured(work.FinetuneLMConfig, values)
    with ranks.joined():
        folder, results = work.finetune_lm(model, data, config, out=out, device=device)
        if not ranks.is_first():
            return
    console.print(Markdown(study_markdown(results)))
    for path in (folder / "results.json", folder / "tables.md", folder / results["exported"]):
        console.print(f"{path}", highlight=False, soft_wrap=True, markup=False)
