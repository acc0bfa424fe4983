"""``stochprune plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from stochprune.cli.options import configured, options_from
from stochprune.report import memory_table, scaling_table
from stochprune.training.memory_plan import MemoryConfig, changes_that_fit
from stochprune.training.scaling import ScalingConfig, scaling_plan


@options_from({MemoryConfig: "Training", ScalingConfig: "Several GPUs"})
def plan(
    model: Annotated[Path, typer.Argument(help="Folder of a transformers model, or its config.json.")],
    *,
    limit: Annotated[float, typer.Option(min=0, help="GB of memory; tells what to change for a plan above it.")] = 0.0,
    **values: Any,
) -> None:
    """Print the memory of mask fine-tuning of a language model before it runs: by part, and the peak.

    Reads the configuration of the model only; no weights are needed. The exit status is 1 if the peak is above the
    limit. With several GPUs it prints what each of them needs and what it sends in a step; batch size and accumulation
    are those of a GPU.
    """
    from stochprune.language_models.model_sizes import LanguageModelSizes

    config, sizes, console = configured(MemoryConfig, values), LanguageModelSizes(model), Console()
    spread = configured(ScalingConfig, values)
    name = model.parent.name if model.name == "config.json" else model.name
    plans = [scaling_plan(sizes, config, ranks=ranks, parallel=spread.parallel) for ranks in spread.ranks]
    if len(plans) == 1:
        memory = plans[0].memory
        console.print(memory_table(name, memory.parts, memory.masked, memory.peak))
    if spread.ranks != (1,):
        rows = [
            (ranks, each.memory.peak, each.sent, each.sequences)
            for ranks, each in zip(spread.ranks, plans, strict=True)
        ]
        console.print(scaling_table(f"{name}: {spread.parallel}", rows))
    if limit and (peak := min(each.memory.peak for each in plans)) > 1e9 * limit:
        if spread.ranks != (1,):
            advice = "take more GPUs with --parallel fsdp or tp, or other options"
        elif (changes := changes_that_fit(sizes, config, 1e9 * limit)) is None:
            advice = "no change of these options is enough"
        else:
            advice = "it fits with " + " ".join(_option(*change) for change in changes.items())
        raise ValueError(f"{peak / 1e9:.3g} GB are above the limit of {limit:g} GB; {advice}")


def _option(name: str, value: Any) -> str:
    flag = "--" + name.replace("_", "-")
    return flag if value is True else f"{flag} {value}"
