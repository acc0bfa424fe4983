"""Results kept by what they are the result of: each configuration has one folder, and is run once."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stochprune.runs.files import CheckpointError, write_json
from stochprune.runs.results import versions


def remember(
    folder: Path, configuration: dict[str, Any], device: torch.device, work: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """The result of ``work`` for a configuration: from its folder if it is there, else from ``work(folder)``,
    which runs on ``device``.

    ``result.json`` holds ``configuration``, ``versions``, ``seconds`` (of the run that ended; a run that was killed
    before adds nothing) and ``result``. The checkpoints that the work leaves in the folder ``checkpoints`` are removed.
    """
    path = folder / "result.json"
    if path.exists():
        done = read_json(path)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        result = work(folder)
        done = {
            "configuration": configuration,
            "versions": versions(device),
            "seconds": round(time.monotonic() - start, 2),
            "result": result,
        }
        write_json(path, done)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return done


def read_json(path: Path) -> dict[str, Any]:
    """The content of a result file.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is truncated or not JSON. Move it away to run this cell again.") from error
