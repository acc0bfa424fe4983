"""Helpers of the commands: options made from configuration dataclasses, and errors in one line."""

from __future__ import annotations

import dataclasses
import errno
import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape

from stochprune.extras import MissingExtraError
from stochprune.runs.files import CheckpointError
from stochprune.runs.interrupt import Stopped, stop_signals
from stochprune.runs.ranks import RankError
from stochprune.studies.executors import WorkerError

Command = Callable[..., None]
Config = TypeVar("Config")
Device = Annotated[str, typer.Option(help="cpu or cuda; the default is cuda if there is a GPU.")]


def options_from(panels: Mapping[Any, str], without: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Add the fields of dataclasses to a command as options; it receives them as keyword arguments.

    Args:
        panels: dataclasses, or instances of them whose values become the defaults, each with the heading of its options
            in the help text.
        without: names of fields that do not become options.
    """

    def decorate(command: Command) -> Command:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters = own + [p for config, panel in panels.items() for p in _options(config, panel, without)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _options(config: Any, panel: str, without: tuple[str, ...]) -> list[inspect.Parameter]:
    """Return one parameter per field, with its type, default and help; a tuple becomes a text with commas."""
    kinds = get_type_hints(config if isinstance(config, type) else type(config))
    parameters = []
    for field in dataclasses.fields(config):
        if "help" not in field.metadata or field.name in without:
            continue
        kind, default = kinds[field.name], getattr(config, field.name)
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


def configured(config: type[Config], values: Mapping[str, Any]) -> Config:
    """Return the configuration that a command's options make, with the configurations that are its fields."""
    given: dict[str, Any] = {}
    for name, kind in get_type_hints(config).items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            given[name] = configured(kind, values)
        elif name in values:
            given[name] = split(name, values[name], get_args(kind)[0]) if get_origin(kind) is tuple else values[name]
    return config(**given)


def split(name: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """Split a text at commas and convert each part to ``kind``."""
    try:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{name} must be numbers separated by commas, got {text!r}") from None


def one_line_ends(command: Command) -> Command:
    """Make a command report user errors in one line on the standard error, without a traceback.

    The exit status is 1 for errors that the user can correct, and 128 plus the signal's number for SIGINT and SIGTERM.
    If the reader of the standard output has closed it, the command ends with status 1 and no message.
    """

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            with stop_signals():
                command(*arguments, **options)
        except Stopped as stopped:
            kept = "no run had started"
            if stopped.folder is not None:  # the temporary folder of a rerun is already deleted
                kept = f"finished work is in {stopped.folder}" if stopped.folder.is_dir() else "nothing is kept"
            _end(f"{stopped}: {kept}; run the same command again to continue", 128 + stopped.signal)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python still flushes at exit
            raise typer.Exit(1) from None
        except OSError as error:
            _end(f"error: {_reason(error)}", 1)
        except (ValueError, FloatingPointError, CheckpointError, MissingExtraError, RankError, WorkerError) as error:
            _end(f"error: {error}", 1)

    return run


def _end(text: str, status: int) -> NoReturn:
    Console(stderr=True).print(escape(" ".join(text.splitlines())), style="red", highlight=False, soft_wrap=True)
    raise typer.Exit(status)


ADVICE = {
    errno.ENOSPC: "Free some space and run the same command again to continue.",
    errno.EDQUOT: "Free some space and run the same command again to continue.",
    errno.EFBIG: "Raise the limit on the size of files and run the same command again to continue.",
    errno.EACCES: "Change its permissions, or choose another folder.",
    errno.EPERM: "Change its permissions, or choose another folder.",
    errno.EROFS: "Choose another folder with --out.",
    errno.EEXIST: "Choose another folder with --out: this name belongs to a file.",
    errno.ENOTDIR: "Choose another folder with --out: this name belongs to a file.",
}


def _reason(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}. {ADVICE.get(error.errno or 0, '')}"
