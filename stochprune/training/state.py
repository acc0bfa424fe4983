"""The state of a training: its position, which checkpoints store, and what callbacks see besides."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from stochprune.data.batch_loss import BatchLoss
from stochprune.nn import masked_layers
from stochprune.runs.files import CheckpointError
from stochprune.training.constraint import Constraint


@dataclass(kw_only=True)
class Position:
    """The position of a training in its data. ``batch`` and ``loss_sum`` count from the start of the epoch.

    Attributes:
        epoch, batch, step: the numbers of finished epochs, of batches in this one, and of optimiser steps in all.
        loss: the loss of the last step, the mean over its batches.
        loss_sum: the sum of the losses of the batches.
        stop: a callback that sets it at the end of an epoch ends the training.
        history: one entry per epoch.
        steps_per_epoch: None for a loader of unknown length.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss: float = math.nan
    loss_sum: float = 0.0
    stop: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    steps_per_epoch: int | None = None

    def check(self, path: Path, *, epochs: int, batches: int | None, accumulate: int) -> None:
        """Raise ``CheckpointError`` if a training of this length cannot be at this position.

        Args:
            path: the file, for the message.
            epochs: of the training.
            batches: in an epoch, None if unknown.
            accumulate: batches in a step.
        """
        length, done = self.steps_per_epoch, -(-self.batch // accumulate)
        numbers = [entry.get("epoch") for entry in self.history]
        if not (
            0 <= self.epoch <= epochs
            and 0 <= self.batch <= (self.step * accumulate if batches is None else batches)
            and self.epoch + done <= self.step
            and (length is None or self.step <= self.epoch * length + done)
            and (self.epoch > 0 or self.step == done)
            and numbers == list(range(1, self.epoch + 1))
            and (self.step == 0 or math.isfinite(self.loss))
            and math.isfinite(self.loss_sum)
        ):
            raise CheckpointError(
                f"{path} has an impossible position: epoch {self.epoch}, batch {self.batch}, step {self.step}, "
                f"loss {self.loss} and a history of {len(numbers)} epochs"
            )


@dataclass(kw_only=True)
class State(Position):
    """The state of a training that callbacks see.

    Attributes:
        model: the model in training.
        epochs: the number of epochs to train.
        optimizer, constraint: of the training.
        batch_loss: the loss of a model on a batch, as the training computes it.
        averaged: a copy of the model with averaged parameters, if a callback such as
            :class:`stochprune.training.EMA` keeps one.
        part: the name of this training where one call makes several of a phase, such as ``cycle1``.
    """

    model: nn.Module
    epochs: int
    optimizer: torch.optim.Optimizer
    batch_loss: BatchLoss
    constraint: Constraint
    averaged: nn.Module | None = None
    part: str = ""

    @property
    def phase(self) -> str:
        """``mask`` if the model has masked layers, else ``weights``: the two trainings of ``prune_finetune``."""
        return "mask" if masked_layers(self.model) else "weights"

    @property
    def name(self) -> str:
        """The name of the training in the files of loggers: its phase, and its part if it has one."""
        return f"{self.phase}-{self.part}" if self.part else self.phase
