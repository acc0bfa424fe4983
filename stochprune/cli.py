"""The command line: ``stochprune finetune``, ``stochprune backends``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

import stochprune
from stochprune import report
from stochprune.training import CheckpointError, FinetuneConfig, StudyConfig, run_study

app = typer.Typer(
    help="Stochastic pruning masks that are drawn, never stored.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)

_FROM_STUDY = ("seed",)  # fields of FinetuneConfig that a study sets itself


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


def _options(config: type, panel: str) -> list[inspect.Parameter]:
    """A command's options from a dataclass: names, types, defaults and help; tuples are given with commas."""
    kinds = get_type_hints(config)
    parameters = []
    for field in dataclasses.fields(config):
        if "help" not in field.metadata or field.name in _FROM_STUDY:
            continue
        kind, default = kinds[field.name], field.default
        if isinstance(default, tuple):
            kind, default = str, ",".join(map(str, default))
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[kind, typer.Option(help=field.metadata["help"], rich_help_panel=panel)],
            )
        )
    return parameters


def _study_options(command: Callable[..., None]) -> Callable[..., None]:
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    study, tuning = _options(StudyConfig, "Study"), _options(FinetuneConfig, "Mask fine-tuning")
    command.__signature__ = inspect.Signature([*own, *study, *tuning])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*own, *study, *tuning]}
    return command


def _split(name: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{name} must be numbers separated by commas, got {text!r}") from None


@app.command()
@_study_options
def finetune(
    *,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    **values: Any,
) -> None:
    """Fine-tune pruning masks, and compare.

    Trains dense networks, prunes them by each score at each sparsity, fine-tunes the masks as probabilities, cuts them
    to the same sparsity, and reports errors beside those of weight training for as many epochs and of a shuffled mask.
    Done work is kept: a run that was stopped goes on when started again. Writes results.json and results.png.
    """
    console = Console()
    try:
        values["scores"] = _split("scores", values["scores"], str)
        values["sparsities"] = _split("sparsities", values["sparsities"], float)
        tuning = {f.name: values.pop(f.name) for f in dataclasses.fields(FinetuneConfig) if f.name in values}
        config = StudyConfig(**values, finetune=FinetuneConfig(**tuning))
        folder, results = run_study(config, data_dir=data_dir, out=out)
    except (ValueError, OSError, FloatingPointError, CheckpointError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    report.draw(results, folder / "results.png")
    console.print(report.table(results))
    console.print(f"{folder}/results.json, {folder}/results.png", highlight=False, soft_wrap=True)


@app.command()
def backends() -> None:
    """Print which backend serves which device."""
    typer.echo(stochprune.backends.table())
