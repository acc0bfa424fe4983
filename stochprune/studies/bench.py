"""The bench of a study's cells: data in the right order, training with a progress bar, errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stochprune import models
from stochprune.data import Batches, Dataset
from stochprune.data.augment import Augmented, augmented
from stochprune.data.batch_loss import LossFunction
from stochprune.masks.select import EmptyLayerError
from stochprune.runs.config import Config, at_least, option
from stochprune.runs.progress import ProgressBar
from stochprune.training.config import WeightConfig
from stochprune.training.evaluate import error, predict
from stochprune.training.options import LoopOptions
from stochprune.training.weights import train_weights

FAILURES = (FloatingPointError, EmptyLayerError)
"""Errors that are results of a cell, and do not end its study: a training that diverged, a layer without weights."""


def why_failed(problem: Exception) -> str:
    """Return the reason of one of the :data:`FAILURES`."""
    return problem.reason if isinstance(problem, EmptyLayerError) else str(problem)


@dataclasses.dataclass(frozen=True)
class AugmentConfig(Config):
    """Changes of the training images, see :class:`stochprune.data.Augmented`."""

    shift: int = option(0, "Largest shift of an image, in pixels, in both directions.", at_least(0))
    flip: bool = option(False, "Mirror half of the images.")


class Bench:
    """One data set, its networks and batches, and a bar that counts optimiser steps over the whole study.

    Everything is on the device of the data set. ``examples`` is the digest of the data with their changes: stored
    results of other data with the same name are refused.
    """

    loss_fn: LossFunction = staticmethod(F.cross_entropy)
    options = LoopOptions()

    def __init__(
        self, dataset: Dataset, batch_size: int, bar: ProgressBar, augment: AugmentConfig = AugmentConfig()
    ) -> None:
        self.dataset, self.batch_size, self.bar, self.augment = dataset, batch_size, bar, augment
        self.device, self.examples = dataset.train_x.device, dataset.digest()
        if augment != AugmentConfig():
            self.examples += f" {augment}"
            self.batches(0)  # raises for images that cannot be shifted

    def build(self, name: str, seed: int) -> nn.Module:
        """Build the network called ``name`` for the data, with the initial values of a seed."""
        return models.build(name, self.dataset.shape, self.dataset.num_classes, seed).to(self.device)

    def batches(self, seed: int) -> Batches | Augmented:
        """Return the training set in the order of a seed."""
        batches = Batches(self.dataset.train_x, self.dataset.train_y, self.batch_size, seed)
        return augmented(batches, self.augment.shift, self.augment.flip)

    @property
    def loop(self) -> dict[str, Any]:
        """The arguments of every training: the loss and the options of the loop."""
        return {"loss_fn": self.loss_fn, "options": self.options}

    def steps(self, epochs: int) -> int:
        """Return the number of optimiser steps in ``epochs``."""
        return epochs * -(-len(self.dataset.train_y) // self.batch_size)

    def error(self, model: nn.Module) -> float:
        """Return the test error in per cent."""
        return error(predict(model, self.dataset.test_x, batch_size=1000), self.dataset.test_y)

    def train(
        self,
        model: nn.Module,
        folder: Path,
        title: str,
        seed: int,
        config: WeightConfig,
        masks: Mapping[str, Tensor] | None = None,
        callbacks: Sequence[object] = (),
    ) -> list[dict[str, float]]:
        """Train in place, resumed from ``folder``; see :func:`stochprune.training.train_weights`."""
        self.bar.begin(title)
        loader = self.batches(seed)
        everyone = [self.bar, *callbacks]
        return train_weights(
            model, loader, config, masks=masks, folder=folder, identity=self.examples, callbacks=everyone, **self.loop
        )
