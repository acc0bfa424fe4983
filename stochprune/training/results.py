"""Result files: what was run, with what, and what came out."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from stochprune.training.device import device_name


def versions(device: torch.device | None = None) -> dict[str, str]:
    """Versions of what a result depends on, and the device that it was found on, if that is told."""
    found = {
        "stochprune": importlib.metadata.version("stochprune"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }
    return found if device is None else found | {"device": device_name(device)}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the whole file or nothing; NaN and infinities are refused."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
