"""Temperature, sparsity and prior strength over the steps of a training, as callbacks of the loop.

Each holds ``start`` until the step ``begin``, moves over ``steps`` steps and then holds ``end``. The value is a
function of the step alone, so that a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

import math

from stochprune.arguments import checked
from stochprune.nn import masked_layers
from stochprune.training.budget import KLBudget, PenaltyBudget, ShiftBudget
from stochprune.training.loop import State


class Annealing:
    """A number over the steps: a straight line, unless a subclass bends it.

    Args:
        start, end: its values up to step ``begin``, and from step ``begin + steps`` on.
        steps: how long it takes, in optimiser steps, at least 1.
        begin: the step at which it starts to move.

    Raises:
        ValueError: a value outside its range.
    """

    name = "value"

    @checked
    def __init__(self, start: float, end: float, steps: int, begin: int = 0) -> None:
        for which, value in (("start", start), ("end", end)):
            if not (math.isfinite(value) and self.allows(value)):
                raise ValueError(f"{type(self).__name__}: {which} must be a {self.name}, got {value}")
        if steps < 1 or begin < 0:
            raise ValueError(f"{type(self).__name__}: steps must be at least 1 and begin 0, got {steps} and {begin}")
        self.start, self.end, self.steps, self.begin = start, end, steps, begin

    def allows(self, value: float) -> bool:
        """Whether the number may take this value."""
        return True

    def at(self, progress: float) -> float:
        """The number at a progress in [0, 1]."""
        return self.start + (self.end - self.start) * progress

    def value(self, step: int) -> float:
        """The number for the step after ``step`` steps were made."""
        return self.at(min(max((step - self.begin) / self.steps, 0.0), 1.0))

    def apply(self, state: State, value: float) -> None:
        """Put the number where the training takes it from."""
        raise NotImplementedError

    def on_start(self, state: State) -> None:
        self.apply(state, self.value(state.step))

    def on_step(self, state: State) -> None:
        self.apply(state, self.value(state.step))


class Temperature(Annealing):
    """The temperature of every masked layer, in equal ratios: ``start (end / start)^progress`` (Jang et al. 2017)."""

    name = "temperature"

    def allows(self, value: float) -> bool:
        return value > 0

    def at(self, progress: float) -> float:
        return self.start * (self.end / self.start) ** progress

    def apply(self, state: State, value: float) -> None:
        for layer in masked_layers(state.model).values():
            layer.temperature = value


class Sparsity(Annealing):
    """The fraction pruned that a budget holds, fast first: ``end + (start - end)(1 - progress)^3`` (Zhu, Gupta 2017).

    For the budgets ``shift`` and ``penalty``, whose expected number of kept weights it moves.
    """

    name = "sparsity in [0, 1)"

    def allows(self, value: float) -> bool:
        return 0 <= value < 1

    def at(self, progress: float) -> float:
        return self.end + (self.start - self.end) * (1 - progress) ** 3

    def apply(self, state: State, value: float) -> None:
        budget = state.constraint
        if not isinstance(budget, (ShiftBudget, PenaltyBudget)):
            raise ValueError(f"Sparsity: needs budget shift or penalty, got {type(budget).__name__}")
        count = sum(logits.numel() for logits in budget.logits)
        # A shift cannot reach an expected sparsity of exactly 0.
        budget.target = min((1 - value) * count, count * (1 - 2.0**-20))


class PriorStrength(Annealing):
    """The weight of the divergence from the prior, or of the penalty, in the loss: a straight line, as in warm-up."""

    name = "strength of at least 0"

    def allows(self, value: float) -> bool:
        return value >= 0

    def apply(self, state: State, value: float) -> None:
        budget = state.constraint
        if not isinstance(budget, (KLBudget, PenaltyBudget)):
            raise ValueError(f"PriorStrength: needs budget kl or penalty, got {type(budget).__name__}")
        budget.strength = value
