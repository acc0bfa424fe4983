"""ADMM: a quadratic penalty pulls the weights towards their own projection onto sparse weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stochprune.masks.select import from_scores
from stochprune.runs.config import POSITIVE, at_least, at_most, option
from stochprune.scores import prunable_weights
from stochprune.training.loop import Loader
from stochprune.training.pruning import ChangingMasks, Pruned, PruningConfig
from stochprune.training.training import Training
from stochprune.training.weights import make_optimizer


@dataclass(frozen=True)
class ADMMConfig(PruningConfig):
    """Pruning by the alternating direction method of multipliers. Zhang et al. 2018, "A systematic DNN weight pruning
    framework using alternating direction method of multipliers" (arXiv 1804.03294), algorithm 1.

    The paper projects each layer to a sparsity of its own; here all weights are ranked together.
    """

    rho: float = option(1e-3, "Strength of the penalty rho / 2 |W - Z + U|^2.", POSITIVE)
    every: int = option(100, "Optimiser steps between updates of Z and U.", at_least(1))
    stop: float = option(
        0.75, "Fraction of the epochs after which the smallest weights are pruned and the others retrained.", at_most(1)
    )


class ADMM(ChangingMasks):
    """The penalty, the updates of Z and U, and in step ``steps`` the cut of the smallest weights.

    Z is the projection of W + U: its largest entries, the others 0. Then U grows by W - Z.

    Args:
        model: its prunable weights are W.
        config: of the method.
        steps: of the optimiser before the cut, at least 1.
    """

    def __init__(self, model: nn.Module, config: ADMMConfig, steps: int) -> None:
        self.weights, self.config, self.steps = prunable_weights(model), config, steps
        super().__init__(model, {name: torch.ones_like(w, dtype=torch.bool) for name, w in self.weights.items()})
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        self.z = self._projected(weights)
        self.u = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def penalty(self) -> Tensor | float:
        if self.made >= self.steps:
            return 0.0
        distances = [(w - self.z[name] + self.u[name]).square().sum() for name, w in self.weights.items()]
        return self.config.rho / 2 * torch.stack(distances).sum()

    @torch.no_grad()
    def after_step(self) -> None:
        self.made += 1
        if self.made == self.steps:
            self.change(self._largest(self.weights))
        elif self.made < self.steps and self.made % self.config.every == 0:
            moved = {name: weight + self.u[name] for name, weight in self.weights.items()}
            self.z = self._projected(moved)
            self.u = {name: moved[name] - z for name, z in self.z.items()}
        self.hold()

    def _largest(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the masks of the largest values of all."""
        sizes = {name: value.detach().abs() for name, value in values.items()}
        return from_scores(sizes, self.config.sparsity, allow_empty=True)

    def _projected(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the nearest values with as many zeros as the sparsity says."""
        return {name: values[name] * mask for name, mask in self._largest(values).items()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "z": self.z, "u": self.u}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name, weight in self.weights.items():
            self.z[name], self.u[name] = (state[key][name].to(weight) for key in ("z", "u"))


def admm(model: nn.Module, loader: Loader, config: ADMMConfig, training: Training) -> Pruned:
    """Train towards sparse weights, prune the smallest of all, and train the others, in place."""
    steps = max(1, round(config.stop * training.steps(loader, config.epochs)))
    constraint = ADMM(model, config, steps)
    optimizer = make_optimizer(model, config, training.options)
    history = training.fit(model, loader, config, optimizer, constraint)
    return Pruned(model, constraint.masks, history)
