"""Where a run's tensors lie."""

from __future__ import annotations

import torch


def device_of(name: str | torch.device) -> torch.device:
    """The device called ``cpu`` or ``cuda``; an empty name is cuda where there is a GPU, and else cpu.

    Raises:
        ValueError: another name, or a GPU that is not there.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {str(name)!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"there is no device {device}: torch sees {torch.cuda.device_count()} GPUs")
    return device


def device_name(device: torch.device) -> str:
    """What a result file says of a device: ``cpu``, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
