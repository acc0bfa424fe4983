"""Versions and the device: what a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from stochprune.runs.device import device_name


def versions(device: torch.device | None = None) -> dict[str, str]:
    """Versions of what a result depends on, and the device that it was found on, if that is told."""
    found = {
        "stochprune": importlib.metadata.version("stochprune"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }
    return found if device is None else found | {"device": device_name(device)}
