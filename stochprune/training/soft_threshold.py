"""Soft-threshold pruning with LATS: the threshold grows with the sum of the learning rates so far."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.data.batch_loss import LossFunction
from stochprune.runs.config import POSITIVE, Config, at_least, option
from stochprune.scores import prunable_weights
from stochprune.training.config import WeightConfig
from stochprune.training.constraint import Constraint
from stochprune.training.loop import Loader
from stochprune.training.options import LoopOptions
from stochprune.training.parametrised import parametrised
from stochprune.training.training import Training
from stochprune.training.weights import make_optimizer


@dataclass(frozen=True)
class SoftThresholdConfig(Config):
    """Training under a growing soft threshold."""

    epochs: int = option(20, "Passes over the training set.", at_least(0))
    lr: float = option(0.1, "Learning rate of SGD at the start; it falls as a cosine.", POSITIVE)
    threshold: float = option(0.1, "The threshold at the end.", POSITIVE)
    checkpoint_every: int = option(500, "Optimiser steps between checkpoints.", at_least(1))

    @property
    def weights(self) -> WeightConfig:
        return WeightConfig(self.epochs, self.lr, self.checkpoint_every, "sgd", schedule="cosine")


def lats(progress: float) -> float:
    """Return the threshold as a fraction of the final threshold: ``x + sin(pi x) / pi``.

    It is the integral of a cosine schedule up to this point, divided by the whole integral. Soft-threshold pruning is
    iterative shrinkage: the threshold grows by each step's learning rate. Chen, Ma, Fang, Zheng, Yu and Tian 2023, "A
    unified framework for soft threshold pruning" (arXiv 2302.13019), section 4.

    Args:
        progress: the completed fraction of the training, in [0, 1].
    """
    return progress + math.sin(math.pi * progress) / math.pi


class _SoftThreshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, threshold: Tensor) -> Tensor:
        return F.relu(weight.abs() - threshold).copysign(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


@checked
def soft_threshold(weight: Tensor, threshold: Tensor) -> Tensor:
    """Return ``sign(w) max(|w| - threshold, 0)``; gradients pass unchanged, so pruned weights can return.

    Raises:
        TypeError: a tensor that is not floating.
    """
    for name, value in (("weight", weight), ("threshold", threshold)):
        if not value.is_floating_point():
            raise TypeError(f"soft_threshold: {name} must be a floating tensor, got {value.dtype}")
    return _SoftThreshold.apply(weight, threshold)


class SoftThreshold(nn.Module):
    """A parametrisation: the weight is the soft threshold of the trained parameter.

    Attributes:
        threshold, steps: buffers, so that a checkpoint contains them.
    """

    threshold: Tensor
    steps: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("threshold", weight.new_zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return soft_threshold(weight, self.threshold)


class _Growth(Constraint):
    """Raises the thresholds after each step."""

    def __init__(self, parts: Sequence[SoftThreshold], end: float, total: int) -> None:
        self.parts, self.end, self.total = parts, end, total

    def after_step(self) -> None:
        for part in self.parts:
            part.steps += 1
            part.threshold.fill_(self.end * lats(int(part.steps) / self.total))


@checked
def train_soft_threshold(
    model: nn.Module,
    train_loader: Loader,
    config: SoftThresholdConfig | None = None,
    *,
    loss_fn: LossFunction = F.cross_entropy,
    folder: Path | None = None,
    callbacks: Sequence[object] = (),
    options: LoopOptions | None = None,
) -> dict[str, Tensor]:
    """Train and prune in place: each prunable weight becomes its soft threshold, which is exactly 0 for many.

    ``config.threshold`` determines the sparsity; it cannot be given directly.

    Args:
        train_loader: batches (x, y) of a known length, iterated again in each epoch.
        folder: if given, ``checkpoint.pt`` is written there, and a run that was killed continues from it.
        callbacks, options: see :func:`stochprune.finetune`.

    Returns:
        bool masks by weight name, True where the weight is not 0.

    Raises:
        ValueError: a loader without length, or no prunable layer; also the errors of
            :func:`stochprune.training.loop.fit`.
    """
    config = config or SoftThresholdConfig()
    training = Training(loss_fn, folder, "", callbacks, options or LoopOptions())
    train_under_threshold(model, train_loader, config.weights, config.threshold, training)
    return {name: weight.detach() != 0 for name, weight in prunable_weights(model).items()}


def train_under_threshold(
    model: nn.Module, loader: Loader, config: WeightConfig, threshold: float, training: Training
) -> list[dict[str, float]]:
    """Train under a growing threshold, in place; weights end as their soft thresholds. Return the history.

    Args:
        config: its schedule is a cosine, whose integral the threshold follows.
        threshold: at the end; a checkpoint of another one is refused.
    """
    steps = max(1, training.steps(loader, config.epochs))
    training = dataclasses.replace(training, identity=f"threshold={threshold}")
    with parametrised(model, SoftThreshold, leave=True) as parts:
        optimizer = make_optimizer(model, config, training.options)
        return training.fit(model, loader, config, optimizer, _Growth([*parts.values()], threshold, steps))
