"""RigL: sparse training that drops small weights and grows those with large gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stochprune import scores
from stochprune.masks.select import from_scores
from stochprune.runs.config import PROBABILITY, at_least, at_most, option
from stochprune.scores import prunable_weights
from stochprune.training.in_backward import StepInBackward
from stochprune.training.loop import Loader
from stochprune.training.pruning import ChangingMasks, Pruned, PruningConfig
from stochprune.training.training import Training
from stochprune.training.weights import make_optimizer


@dataclass(frozen=True)
class RigLConfig(PruningConfig):
    """RigL. Evci, Gale, Menick, Castro and Elsen 2020, "Rigging the lottery" (arXiv 1911.11134), algorithm 1."""

    start: Literal["random", "magnitude"] = option(
        "random", "First mask: random with the densities of the Erdos-Renyi-kernel rule, or the largest weights of all."
    )
    every: int = option(100, "Optimiser steps between updates of the masks.", at_least(1))
    stop: float = option(0.75, "Fraction of the epochs after which the masks stay.", at_most(1))
    fraction: float = option(0.3, "Fraction of a layer's kept weights that the first update replaces.", PROBABILITY)


class RigL(ChangingMasks):
    """Every ``every`` steps each layer drops its smallest kept weights, and keeps as many others of largest gradient.

    The update replaces the optimiser's step. It exchanges the fraction ``fraction / 2 (1 + cos(pi t / T))`` of the kept
    weights after t steps, and none from T = ``steps`` on. A new weight starts at 0, with a new state of the optimiser.
    A weight that was just dropped may return, and then keeps its value.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        config: RigLConfig,
        steps: int,
    ) -> None:
        super().__init__(model, masks)
        self.parameters = list(model.parameters())
        self.optimizer, self.config, self.steps = optimizer, config, steps

    def before_step(self) -> None:
        self.made += 1
        if self.made < self.steps and self.made % self.config.every == 0:
            share = self.config.fraction / 2 * (1 + math.cos(math.pi * self.made / self.steps))
            self.pairs = [(weight, self._updated(weight, pruned, share)) for weight, pruned in self.pairs]
            for parameter in self.parameters:
                parameter.grad = None  # optimisers of torch leave out parameters without a gradient
        super().before_step()

    def after_step(self) -> None:
        self.hold()

    @torch.no_grad()
    def _updated(self, weight: nn.Parameter, pruned: Tensor, share: float) -> Tensor:
        """Return the new mask of a layer, True where pruned; both have one number of kept weights."""
        kept = int((~pruned).sum())
        count = min(round(share * kept), pruned.numel() - kept)
        if weight.grad is None or not count:
            return pruned
        stays = ~_smallest(weight.abs().masked_fill(pruned, math.inf), count) & ~pruned
        grown = _smallest(weight.grad.abs().neg().masked_fill(stays, math.inf), count)
        for state in self.optimizer.state.get(weight, {}).values():
            if isinstance(state, Tensor) and state.shape == weight.shape:
                state.masked_fill_(grown & pruned, 0)
        return ~(stays | grown)


def _smallest(values: Tensor, count: int) -> Tensor:
    """Return bool of the values' shape, True at the ``count`` smallest; of equal values at the first."""
    chosen = values.flatten().argsort(stable=True)[:count]
    found = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    return found.index_fill_(0, chosen, True).view(values.shape)


def rigl(model: nn.Module, loader: Loader, config: RigLConfig, training: Training) -> Pruned:
    """Prune to the first mask, then train and exchange weights, in place."""
    steps = max(1, round(config.stop * training.steps(loader, config.epochs)))
    if config.start == "random":
        densities = scores.erk_densities(model, config.sparsity)
        first = {name: score > 0 for name, score in scores.random(model, seed=config.seed, densities=densities).items()}
    else:
        first = from_scores(scores.magnitude(model), config.sparsity, allow_empty=True)
    optimizer = make_optimizer(model, config, training.options)
    if isinstance(optimizer, StepInBackward):
        raise ValueError(
            "rigl: LoopOptions.optimizer steps inside backward, which frees the gradients that choose the new weights: "
            "give an ordinary optimiser"
        )
    constraint = RigL(model, {name: first[name] for name in prunable_weights(model)}, optimizer, config, steps)
    history = training.fit(model, loader, config, optimizer, constraint)
    return Pruned(model, constraint.masks, history)
