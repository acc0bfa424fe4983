"""Gradual magnitude pruning: the smallest weights go little by little while the others train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stochprune import patterns
from stochprune.masks.select import from_scores, n_of_m
from stochprune.runs.config import at_least, at_most, option
from stochprune.scores import by_output, prunable_weights
from stochprune.training.loop import Loader
from stochprune.training.pruning import (
    EXCLUDE,
    GROUPED_PATTERN,
    SCOPE,
    ChangingMasks,
    Pruned,
    PruningConfig,
    check_pattern,
)
from stochprune.training.schedules import cubic
from stochprune.training.training import Training
from stochprune.training.weights import make_optimizer


@dataclass(frozen=True)
class GradualMagnitudeConfig(PruningConfig):
    """Gradual magnitude pruning. Zhu and Gupta 2017, "To prune, or not to prune" (arXiv 1710.01878)."""

    ramp: float = option(0.5, "Fraction of the epochs in which the sparsity grows; then the masks stay.", at_most(1))
    every: int = option(50, "Optimiser steps between prunings.", at_least(1))
    pattern: str = option("", GROUPED_PATTERN)
    exclude: str = option("", EXCLUDE)
    scope: Literal["global", "layer", "row"] = option("global", SCOPE)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self, groups=True)


class GradualMagnitude(ChangingMasks):
    """Prunes the smallest of the weights that are left, to the sparsity ``s (1 - (1 - t / T)^3)`` after t steps.

    This is equation 1 of Zhu and Gupta from dense. A pruned weight stays 0.

    Args:
        model: its prunable weights are pruned.
        config: its ``sparsity`` is s. Without a ``pattern`` single weights are pruned. ``"rows"``, ``"columns"`` and
            blocks such as ``"16x16"`` prune whole groups: those of the smallest mean magnitude, which is the L1 norm of
            Li et al. 2017 (arXiv 1608.08710) divided by the size of the group, as
            :func:`stochprune.masks.from_scores` ranks them; s is then the fraction of the groups. ``"n:m"``: each group
            of m keeps a number of weights that falls from m to n by the same cubic, rounded up.
        steps: T, at least 1; in step T the last weights are pruned.

    Raises:
        ValueError: a pattern that does not fit a weight; in a step, groups of which a layer would keep none
            (``EmptyLayerError``).
    """

    def __init__(self, model: nn.Module, config: GradualMagnitudeConfig, steps: int) -> None:
        self.model, self.config, self.steps = model, config, steps
        self.weights = prunable_weights(model, exclude=config.exclude or None)
        super().__init__(model, self._largest({name: w.detach().abs() for name, w in self.weights.items()}, 0.0))

    def after_step(self) -> None:
        self.made += 1
        if self.made == self.steps or (self.made < self.steps and self.made % self.config.every == 0):
            sizes = {
                name: torch.where(mask, self.weights[name].detach().abs(), -1) for name, mask in self.masks.items()
            }
            self.change(self._largest(sizes, cubic(0.0, self.config.sparsity, self.made / self.steps)))
        self.hold()

    def _largest(self, sizes: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        pattern, rows = self.config.pattern or None, by_output(self.model, sizes)
        if pattern is not None and ":" in pattern:
            _, m = patterns.parse(pattern)
            kept = n_of_m(rows, math.ceil(m * (1 - sparsity) - 1e-9), m)
        else:
            kept = from_scores(rows, sparsity, self.config.scope, pattern=pattern, allow_empty=pattern is None)
        return by_output(self.model, kept)


def gradual_magnitude(model: nn.Module, loader: Loader, config: GradualMagnitudeConfig, training: Training) -> Pruned:
    """Train and prune in place."""
    steps = max(1, round(config.ramp * training.steps(loader, config.epochs)))
    constraint = GradualMagnitude(model, config, steps)
    optimizer = make_optimizer(model, config, training.options)
    history = training.fit(model, loader, config, optimizer, constraint)
    return Pruned(model, constraint.masks, history)
