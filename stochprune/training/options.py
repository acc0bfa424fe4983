"""LoopOptions: how a trainer computes and follows its gradients."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from stochprune.arguments import check_fields, shown
from stochprune.data.batch_loss import BatchLoss, ForwardLoss, LossFunction
from stochprune.training.identity import length_of

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LoopOptions:
    """The options of a training loop: its gradients and steps; the defaults are those of the configuration.

    Attributes:
        optimizer: a function of the parameter groups that returns an optimiser of torch, such as ``torch.optim.AdamW``
            or ``functools.partial(torch.optim.SGD, momentum=0.9)``. The groups have their learning rates, and names
            (see :func:`stochprune.parameter_groups`).
        schedule: a function of the optimiser and the number of its steps that returns a learning-rate scheduler of
            torch, which makes one step after each step of the optimiser: ``lambda optimizer, steps:
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)``. The loader must have a length.
        forward_loss: a function of the model and a batch, on the model's device, that returns the loss, or a pair of
            the loss and the outputs, which metrics then see.
        precision: ``fp32``, or ``bf16`` or ``fp16`` for autocast; ``fp16`` scales the loss so that small gradients do
            not vanish (``torch.amp.GradScaler``).
        accumulate: batches whose mean gradient is one step; the rest at the end of an epoch is a step too.
        clip_norm: the largest norm of the gradient of all parameters together.

    Raises:
        ValueError: a value of another kind or outside its range.
    """

    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None
    schedule: Callable[[torch.optim.Optimizer, int], LRScheduler] | None = None
    forward_loss: ForwardLoss | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = 1
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= self.accumulate <= sys.maxsize:
            raise ValueError(f"LoopOptions: accumulate must lie in 1 .. {sys.maxsize}, got {self.accumulate}")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(f"LoopOptions: clip_norm must be positive and finite, got {self.clip_norm}")

    def identity(self, *more: str) -> str:
        """Return a text that differs if another training results, as far as texts tell; "" for the defaults."""
        plain = {"precision": "fp32", "accumulate": 1, "clip_norm": None}
        chosen = [f"{name}={getattr(self, name)}" for name, value in plain.items() if getattr(self, name) != value]
        return " ".join(filter(None, [*more, *chosen]))

    def steps(self, what: str, loader: Iterable[Any], epochs: int) -> int:
        """Return the number of optimiser steps in ``epochs``; ``what`` needs it.

        Raises:
            ValueError: a loader of unknown length.
        """
        if (batches := length_of(loader)) is None:
            raise ValueError(f"{what} needs a train_loader of known length, got {shown(loader)}")
        return epochs * -(-batches // self.accumulate)

    def batch_loss(self, loss_fn: LossFunction) -> BatchLoss:
        """Return the loss of a model on a batch, on the model's device."""
        return BatchLoss(loss_fn, self.forward_loss, PRECISIONS[self.precision], "train_loader")

    def make_schedule(self, optimizer: torch.optim.Optimizer, steps: int | None) -> LRScheduler | None:
        """Return the scheduler of an optimiser that makes ``steps`` steps, None if there is none.

        Raises:
            ValueError: the number of steps is not known.
            TypeError: the function returns something else, or a scheduler that needs a measured value.
        """
        if self.schedule is None:
            return None
        if steps is None:
            raise ValueError("LoopOptions: schedule needs a train_loader of known length")
        made = self.schedule(optimizer, steps)
        if not isinstance(made, LRScheduler) or isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise TypeError(
                f"LoopOptions: schedule must return a torch.optim.lr_scheduler.LRScheduler whose step() takes no "
                f"argument, got {type(made).__name__}"
            )
        return made


def not_finite(model: nn.Module, tensors: list[Tensor]) -> str:
    """Say why the loss of a batch of these tensors is not finite: the data, the parameters, or neither."""
    if any(tensor.is_floating_point() and not bool(tensor.isfinite().all()) for tensor in tensors):
        return "the batch holds values that are not finite: look at the data"
    broken = [name for name, parameter in model.named_parameters() if not bool(parameter.isfinite().all())]
    if broken:
        return f"{', '.join(broken[:3])} hold values that are not finite: lower the learning rates, or clip gradients"
    return "the data and the parameters are finite, so the forward pass overflows: lower the learning rates"
