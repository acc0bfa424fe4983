"""What the commands share: options that follow from configuration dataclasses, and errors in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from stochprune.training import CheckpointError

Command = Callable[..., None]
Device = Annotated[str, typer.Option(help="cpu or cuda; default cuda where there is a GPU.")]


def options_from(panels: Mapping[type, str], without: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Gives a command the fields of dataclasses as options, which reach it as keyword arguments.

    Args:
        panels: the dataclasses, each with the heading of its options in the help text.
        without: fields that are no options.
    """

    def decorate(command: Command) -> Command:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters = own + [p for config, panel in panels.items() for p in _options(config, panel, without)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _options(config: type, panel: str, without: tuple[str, ...]) -> list[inspect.Parameter]:
    """Names, types, defaults and help from the fields; tuples are given with commas."""
    kinds = get_type_hints(config)
    parameters = []
    for field in dataclasses.fields(config):
        if "help" not in field.metadata or field.name in without:
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


def take(config: type, values: dict[str, Any]) -> dict[str, Any]:
    """Removes from ``values`` those of the fields of ``config``, and gives them."""
    return {field.name: values.pop(field.name) for field in dataclasses.fields(config) if field.name in values}


def split(name: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """The parts of a text with commas."""
    try:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{name} must be numbers separated by commas, got {text!r}") from None


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """What a user can mend ends the command with its message and status 1, without a traceback."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError, CheckpointError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
