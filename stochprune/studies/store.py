"""Results kept by what they are the result of: each configuration has one folder, and is run once."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stochprune.runs.files import CheckpointError, Kinds, read_json, require, write_json
from stochprune.runs.folder import claim
from stochprune.runs.results import versions

KINDS: Kinds = {"configuration": dict, "versions": dict, "seconds": (int, float), "result": dict}


def remember(
    folder: Path,
    configuration: dict[str, Any],
    device: torch.device,
    work: Callable[[Path], dict[str, Any]],
    kinds: Kinds,
) -> dict[str, Any]:
    """The result of ``work`` for a configuration: from its folder if it is there, else from ``work(folder)``,
    which runs on ``device``. While another process is at work in the folder, it waits.

    ``result.json`` holds ``configuration``, ``versions``, ``seconds`` (of the run that ended; a run that was killed
    before adds nothing) and ``result``. The checkpoints that the work leaves in the folder ``checkpoints`` are removed
    when that is on disk.

    Args:
        kinds: the keys of a result and their types.

    Raises:
        CheckpointError: ``result.json`` is damaged, of another configuration, or lacks a key.
    """
    path = folder / "result.json"
    with claim(folder, wait=True):
        if not os.path.lexists(path):
            start = time.monotonic()
            result = work(folder)
            done = {
                "configuration": configuration,
                "versions": versions(device),
                "seconds": round(time.monotonic() - start, 2),
                "result": result,
            }
            write_json(path, done)
        found = read_result(path)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    require(found["result"], kinds, path)
    if found["configuration"] != json.loads(json.dumps(configuration)):
        raise CheckpointError(
            f"{path} is the result of another configuration, or of other examples. Move it away to run this one."
        )
    return found


def read_result(path: Path) -> dict[str, Any]:
    """The content of a ``result.json``.

    Raises:
        CheckpointError: it is damaged, or lacks a key.
    """
    return require(read_json(path, "result"), KINDS, path)
