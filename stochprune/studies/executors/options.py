"""The executors by name, and their options."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stochprune.arguments import checked
from stochprune.studies.executors.engine import Engine
from stochprune.studies.executors.on_ray import RayEngine
from stochprune.studies.executors.on_slurm import SlurmEngine

ENGINES: dict[str, Any] = {"ray": RayEngine, "slurm": SlurmEngine}
OPTIONS: dict[str, dict[str, type]] = {
    "ray": {"address": str, "cpus": float, "gpus": float},
    "slurm": {
        **dict.fromkeys(("cluster", "partition", "account", "qos", "constraint"), str),
        **{"minutes": int, "cpus": int, "gpus": int, "memory": float},
    },
}
"""The options of each engine, and their types."""
NAMES = ("local", *ENGINES)
WORDS = {int: "an integer above 0", float: "a number of at least 0", str: "a text"}


@dataclasses.dataclass(frozen=True)
class Executor:
    """An engine, its options, and the largest number of cells that run at the same time."""

    name: str
    workers: int
    options: dict[str, Any]

    def start(self, folder: Path) -> Engine:
        """Return the engine; its own files go to ``folder``."""
        return ENGINES[self.name](folder, self.workers, **self.options)


@checked
def choose(name: str, workers: int = 2, options: Sequence[str] = ()) -> Executor | None:
    """Return the executor called ``name``; None for ``local``, which is this process.

    Args:
        workers: the largest number of cells that run at the same time.
        options: texts such as ``gpus=1``.

    Raises:
        ValueError: an unknown executor or option, a wrong value, or an option of the executor local.
    """
    if name not in NAMES:
        raise ValueError(f"executor must be one of {', '.join(NAMES)}, got {name!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if name == "local":
        if options:
            raise ValueError(f"executor local, this process, has no options, got {options[0]!r}")
        return None
    known, found = OPTIONS[name], dict[str, Any]()
    for text in options:
        key, equals, value = text.partition("=")
        if key not in known or not equals or key in found:
            raise ValueError(f"executor {name} takes KEY=VALUE of {', '.join(known)}, each once, got {text!r}")
        found[key] = _value(text, known[key], value)
    return Executor(name, workers, found)


def _value(text: str, kind: type, value: str) -> Any:
    try:
        made = kind(value)
    except ValueError:
        made = None
    if made is None or made == "" or (kind is int and made < 1) or (kind is float and not 0 <= made < math.inf):
        raise ValueError(f"executor option {text!r} must be {WORDS[kind]}")
    return made
