"""The device of a run's tensors."""

from __future__ import annotations

import torch

from stochprune.arguments import checked


@checked
def device_of(name: str | torch.device) -> torch.device:
    """Return the device called ``cpu``, ``cuda`` or ``cuda:1``; an empty name is cuda if there is a GPU, else cpu.

    Raises:
        ValueError: another name, a GPU that does not exist, or a CPU with a number.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, ValueError):
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ValueError(f"device must be cpu or cuda (or cuda:1, the second GPU), got {str(name)!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise ValueError(f"there is no device {device}: torch sees {seen} GPUs; choose cpu")
    return device


def device_name(device: torch.device) -> str:
    """Return the name of a device for result files: ``cpu``, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
