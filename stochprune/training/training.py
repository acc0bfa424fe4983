"""Training: what the trainers of plain weights have in common besides the model, its data and the method."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune import scores
from stochprune.data.batch_loss import BatchLoss, LossFunction
from stochprune.nn.selection import wanted
from stochprune.nn.unmasked import silent_about_unmasked
from stochprune.runs.run import open_run
from stochprune.training.config import WeightConfig
from stochprune.training.constraint import Constraint
from stochprune.training.identity import identity
from stochprune.training.loop import Loader, fit, set_epoch
from stochprune.training.options import LoopOptions
from stochprune.training.schedules import SCHEDULES, Schedule, follow


class Choice(Protocol):
    """The fields of a configuration that choose and score weights."""

    @property
    def score(self) -> str: ...
    @property
    def exclude(self) -> str: ...
    @property
    def calibration(self) -> int: ...
    @property
    def sparsity(self) -> float: ...
    @property
    def seed(self) -> int: ...


def first_batches(loader: Loader, count: int) -> Loader:
    """Return batches of the first epoch, for scores; 0 means all."""
    set_epoch(loader, 0)
    return list(itertools.islice(loader, count)) if count else loader


@dataclasses.dataclass(frozen=True)
class Training:
    """The arguments that trainers pass on; see :func:`stochprune.training.train_weights` for their meaning."""

    loss_fn: LossFunction = F.cross_entropy
    folder: Path | None = None
    identity: str = ""
    callbacks: Sequence[object] = ()
    options: LoopOptions = dataclasses.field(default_factory=LoopOptions)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that every trainer takes by keyword."""
        return {"loss_fn": self.loss_fn, "callbacks": self.callbacks, "options": self.options}

    @property
    def batch_loss(self) -> BatchLoss:
        """The loss of a batch, for scores; the hook of the options, if it has one, reads the batch."""
        return BatchLoss(self.loss_fn, self.options.forward_loss, argument="train_loader")

    def score(self, name: str, model: nn.Module, loader: Loader, sparsity: float, seed: int) -> dict[str, Tensor]:
        """Return the pruning score called ``name`` on the batches of the first epoch, whatever ran before."""
        set_epoch(loader, 0)
        with silent_about_unmasked():  # convert or prune names them, and knows what is excluded
            return scores.compute(name, model, self.batch_loss, loader, sparsity=sparsity, seed=seed)

    def chosen(self, config: Choice, model: nn.Module, loader: Loader) -> dict[str, Tensor]:
        """Return the scores of the weights that a configuration prunes."""
        batches = first_batches(loader, config.calibration)
        found = self.score(config.score, model, batches, config.sparsity, config.seed)
        return {name: value for name, value in found.items() if wanted(model, [name], None, config.exclude or None)}

    def steps(self, loader: Loader, epochs: int) -> int:
        """Return the number of optimiser steps in ``epochs``; ``ValueError`` for a loader of unknown length."""
        return self.options.steps("a schedule", loader, epochs)

    def fit(
        self,
        model: nn.Module,
        loader: Loader,
        config: WeightConfig,
        optimizer: torch.optim.Optimizer,
        constraint: Constraint,
        schedule: Schedule | None = None,
    ) -> list[dict[str, float]]:
        """Train a model in place, resumed from the folder; return the history.

        Args:
            constraint: if it has ``state_dict`` and ``load_state_dict``, its state is stored in the checkpoint.
            schedule: of the learning rate, used instead of ``config.schedule``.
        """
        if schedule is not None or config.schedule != "constant":
            steps = self.steps(loader, config.epochs)
            if self.options.schedule is not None:
                raise ValueError("options and the configuration both have a schedule; give one of them")
            follow(optimizer, schedule or SCHEDULES[config.schedule], steps)
        stateful = hasattr(constraint, "state_dict")
        with open_run(config, self.folder) as run:
            reads = functools.partial(identity, loader, self.loss_fn, self.options.forward_loss)
            start = self.options.identity(self.identity)
            checkpoint = run.checkpoint(config.checkpoint_every, model, start, reads=reads)
            model.train()
            return fit(
                model,
                loader,
                epochs=config.epochs,
                optimizer=optimizer,
                loss_fn=self.loss_fn,
                constraint=constraint,
                checkpoint=checkpoint,
                callbacks=[constraint, *self.callbacks] if stateful else self.callbacks,
                options=self.options,
            )
