"""Gradual magnitude pruning: the smallest weights go little by little while the others train."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stochprune import patterns
from stochprune.masks.select import from_scores, n_of_m
from stochprune.runs.config import at_least, at_most, option
from stochprune.scores import by_output, prunable_weights
from stochprune.training.loop import Loader
from stochprune.training.pruning import EXCLUDE, PATTERN, ChangingMasks, Pruned, PruningConfig, check_pattern
from stochprune.training.schedules import cubic
from stochprune.training.training import Training
from stochprune.training.weights import make_optimizer


@dataclass(frozen=True)
class GradualMagnitudeConfig(PruningConfig):
    """Gradual magnitude pruning. Zhu and Gupta 2017, "To prune, or not to prune" (arXiv 1710.01878)."""

    ramp: float = option(0.5, "Fraction of the epochs in which the sparsity grows; then the masks stay.", at_most(1))
    every: int = option(50, "Optimiser steps between prunings.", at_least(1))
    pattern: str = option("", PATTERN)
    exclude: str = option("", EXCLUDE)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self)


class GradualMagnitude(ChangingMasks):
    """Prunes the smallest of the weights that are left, to the sparsity ``s (1 - (1 - t / T)^3)`` after t steps.

    This is equation 1 of Zhu and Gupta from dense, over all prunable weights together. A pruned weight stays 0.

    Args:
        model: its prunable weights are pruned.
        sparsity: at the end.
        steps: T, at least 1; in step T the last weights are pruned.
        every: steps between prunings.
        pattern: ``"n:m"``: each group of m keeps a number of weights that falls from m to n by the same cubic, rounded
            up. Empty: single weights.
        exclude: shell pattern on names of weights that stay dense; empty for none.
    """

    def __init__(
        self, model: nn.Module, sparsity: float, steps: int, every: int, pattern: str = "", exclude: str = ""
    ) -> None:
        weights = prunable_weights(model, exclude=exclude or None)
        super().__init__(model, {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()})
        self.weights, self.sparsity, self.steps, self.every = weights, sparsity, steps, every
        self.model, self.pattern = model, patterns.parse(pattern) if pattern else None

    def after_step(self) -> None:
        self.made += 1
        if self.made == self.steps or (self.made < self.steps and self.made % self.every == 0):
            sizes = {
                name: torch.where(mask, self.weights[name].detach().abs(), -1) for name, mask in self.masks.items()
            }
            self.change(self._largest(sizes, cubic(0.0, self.sparsity, self.made / self.steps)))
        self.hold()

    def _largest(self, sizes: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        if self.pattern is None:
            return from_scores(sizes, sparsity, allow_empty=True)
        _, m = self.pattern
        kept = n_of_m(by_output(self.model, sizes), math.ceil(m * (1 - sparsity) - 1e-9), m)
        return by_output(self.model, kept)


def gradual_magnitude(model: nn.Module, loader: Loader, config: GradualMagnitudeConfig, training: Training) -> Pruned:
    """Train and prune in place."""
    steps = max(1, round(config.ramp * training.steps(loader, config.epochs)))
    constraint = GradualMagnitude(model, config.sparsity, steps, config.every, config.pattern, config.exclude)
    optimizer = make_optimizer(model, config, training.options)
    history = training.fit(model, loader, config, optimizer, constraint)
    return Pruned(model, constraint.masks, history)
