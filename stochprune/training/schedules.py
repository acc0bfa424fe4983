"""Learning-rate schedules: factors by which the initial learning rate is multiplied."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

Schedule = Callable[[float], float]
"""A function from the progress of a training, in [0, 1), to the factor of the learning rate."""

SCHEDULES: Mapping[str, Schedule] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
    "steps": lambda progress: 0.1 ** ((progress >= 0.5) + (progress >= 0.75)),
}
"""``steps`` is the schedule of He et al. 2016 for CIFAR-10: 1/10 from one half on, 1/100 from three quarters on."""


def cubic(start: float, end: float, progress: float) -> float:
    """Return ``end + (start - end)(1 - progress)^3``, for a progress in [0, 1] (Zhu and Gupta 2017, equation 1)."""
    return end + (start - end) * (1 - progress) ** 3


def follow(optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int) -> None:
    """Before each of ``steps`` steps, set every group's rate to its initial rate times ``schedule(step / steps)``.

    The number of steps is stored in the groups, and so in the optimiser's state: a resumed run continues correctly.
    """
    for group in optimizer.param_groups:
        group["first_lr"], group["steps_made"] = group["lr"], 0

    def set_rates(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["first_lr"] * schedule(group["steps_made"] / max(1, steps))
            group["steps_made"] += 1

    optimizer.register_step_pre_hook(set_rates)
