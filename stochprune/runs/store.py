"""Stored results: each configuration has one folder and runs once."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from stochprune.runs import ranks
from stochprune.runs.files import CheckpointError, read_json, write_json
from stochprune.runs.folder import claim
from stochprune.runs.results import record_of, versions

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Result = TypeVar("Result", bound="DataclassInstance")


@dataclasses.dataclass(frozen=True)
class Kept(Generic[Result]):
    """A result as stored in ``result.json``.

    Attributes:
        configuration: the configuration of the result.
        versions: the versions that made it, see :func:`stochprune.runs.versions`.
        seconds: time of the run that finished; earlier runs that were killed do not count.
        result: a dataclass.
    """

    configuration: dict[str, Any]
    versions: dict[str, Any]
    seconds: float
    result: Result


def remember(
    folder: Path,
    configuration: Mapping[str, Any],
    device: torch.device,
    work: Callable[[Path], Result],
    kind: type[Result],
) -> Kept[Result]:
    """Return the result of a configuration: from its folder if it is there, else from ``work(folder)``.

    The work runs on ``device``. If another process works in the folder, this one waits. ``result.json`` contains a
    :class:`Kept`. When it is on disk, the checkpoints in the folder ``checkpoints`` are removed.

    Args:
        kind: the dataclass of the result.

    Raises:
        CheckpointError: ``result.json`` is damaged, belongs to another configuration, or lacks a key.
    """
    path = folder / "result.json"
    with claim(folder, wait=True):
        if not ranks.from_first(lambda: os.path.lexists(path)):
            begun = time.monotonic()
            result = work(folder)
            done = Kept(dict(configuration), versions(device), round(time.monotonic() - begun, 2), result)
            if ranks.is_first():
                write_json(path, dataclasses.asdict(done))
        content = ranks.from_first(lambda: read_json(path, "result"))
        if ranks.is_first():
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    found = record_of(Kept[Any], content, path)
    kept = dataclasses.replace(found, result=record_of(kind, found.result, path))
    if kept.configuration != json.loads(json.dumps(configuration)):
        raise CheckpointError(
            f"{path} belongs to another configuration or to other examples. Move it away to run this one."
        )
    return kept


def say_reused(kept: Collection[Kept[Any]], here: Mapping[str, str]) -> None:
    """Print one line on the standard error: how many results were made with other versions or devices than ``here``.

    Args:
        here: versions and device of this run.
    """
    former = [each.versions for each in kept if any(each.versions.get(name) != here[name] for name in here)]
    if not former or not ranks.is_first():
        return
    found = {name: sorted({str(versions.get(name)) for versions in former} - {value}) for name, value in here.items()}
    made_with = ", ".join(f"{name} {' and '.join(found[name])} (here {here[name]})" for name in here if found[name])
    print(
        f"{len(former)} of {len(kept)} results are kept from former runs, made with {made_with}: "
        "remove their folders to make them again",
        file=sys.stderr,
    )
