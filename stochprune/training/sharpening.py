"""Sharpening: moves the keep probabilities towards 0 and 1 when the budget has fallen."""

from __future__ import annotations

import torch

from stochprune.training.budget import Budget
from stochprune.training.state import State


class Sharpening:
    """A callback that multiplies all logits by a factor after one step, and lets the budget shift them again.

    A short training ends before the probabilities have gone to 0 and 1. Then the weights are trained under masks that
    differ much from the cut. The change is part of the checkpoint of its step, so a resumed run makes it once.

    Args:
        factor: of the logits; more than 1 sharpens.
        step: the number of the optimiser step.
    """

    def __init__(self, budget: Budget, factor: float, step: int) -> None:
        self.budget, self.factor, self.step = budget, factor, step

    @torch.no_grad()
    def on_update(self, state: State) -> None:
        if state.step == self.step:
            for logits in self.budget.logits:
                logits.mul_(self.factor)
            self.budget.hold()
