"""Schedules of temperature, sparsity and prior strength over the steps of a training, as callbacks of the loop.

Each value is ``start`` until step ``begin``, changes over ``steps`` steps, and is ``end`` afterwards. It depends only
on the step, so a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import math

from stochprune.arguments import checked
from stochprune.nn import masked_layers
from stochprune.runs.config import LIMIT
from stochprune.training.budget import Budget
from stochprune.training.schedules import cubic
from stochprune.training.state import State


class Annealing:
    """A number that changes over the steps: linearly, unless a subclass defines another curve.

    Args:
        start, end: its values up to step ``begin``, and from step ``begin + steps`` on.
        steps: the length of the change in optimiser steps, at least 1.
        begin: the step at which the change starts.

    Raises:
        ValueError: a value outside its range.
    """

    rule = "finite"

    @checked
    def __init__(self, start: float, end: float, steps: int, begin: int = 0) -> None:
        for which, value in (("start", start), ("end", end)):
            if not (math.isfinite(value) and self.allows(value)):
                raise ValueError(f"{type(self).__name__}: {which} must be {self.rule}, got {value}")
        if not 1 <= steps < LIMIT or not 0 <= begin < LIMIT:
            raise ValueError(
                f"{type(self).__name__}: steps must be at least 1, begin at least 0 and both below 2^64, "
                f"got {steps} and {begin}"
            )
        self.start, self.end, self.steps, self.begin = start, end, steps, begin

    def allows(self, value: float) -> bool:
        """Return True if the number may have this value."""
        return True

    def at(self, progress: float) -> float:
        """Return the number at a progress in [0, 1]."""
        return self.start + (self.end - self.start) * progress

    def value(self, step: int) -> float:
        """Return the number for the next step after ``step`` steps."""
        return self.at(min(max((step - self.begin) / self.steps, 0.0), 1.0))

    def apply(self, state: State, value: float) -> None:
        """Set the number in the training."""
        raise NotImplementedError

    def on_start(self, state: State) -> None:
        self.apply(state, self.value(state.step))

    def on_step(self, state: State) -> None:
        self.apply(state, self.value(state.step))


class Temperature(Annealing):
    """Changes the temperature of every masked layer: ``start (end / start)^progress`` (Jang et al. 2017)."""

    rule = "positive and finite"

    def allows(self, value: float) -> bool:
        return value > 0

    def at(self, progress: float) -> float:
        return self.start * (self.end / self.start) ** progress

    def apply(self, state: State, value: float) -> None:
        for layer in masked_layers(state.model).values():
            layer.temperature = value


class Sparsity(Annealing):
    """Changes the expected sparsity that a budget holds: ``end + (start - end)(1 - progress)^3`` (Zhu, Gupta 2017).

    It works with the budgets ``shift`` and ``penalty``, and changes their expected number of kept weights.
    """

    rule = "a sparsity in [0, 1)"

    def allows(self, value: float) -> bool:
        return 0 <= value < 1

    def at(self, progress: float) -> float:
        return cubic(self.start, self.end, progress)

    def apply(self, state: State, value: float) -> None:
        _budget_of(self, state, "shift", "penalty").aim(value)


class PriorStrength(Annealing):
    """Changes the weight of the KL from the prior, or of the penalty, in the loss, linearly, as in a warm-up."""

    rule = "at least 0 and finite"

    def allows(self, value: float) -> bool:
        return value >= 0

    def apply(self, state: State, value: float) -> None:
        _budget_of(self, state, "kl", "penalty").strength = value


def _budget_of(schedule: Annealing, state: State, *kinds: str) -> Budget:
    """Return the budget of a training, which must be of one of these kinds."""
    budget = state.constraint
    if not isinstance(budget, Budget) or budget.kind not in kinds:
        got = budget.kind if isinstance(budget, Budget) else type(budget).__name__
        raise ValueError(f"{type(schedule).__name__}: needs budget {' or '.join(kinds)}, got {got}")
    return budget
