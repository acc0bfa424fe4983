"""The budget of a training in another library: its plan, and the part that all callbacks share."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from stochprune.nn.harden import harden as harden_model
from stochprune.training.budget import Budget, Kind, Schedule, Scope


@dataclasses.dataclass(frozen=True)
class BudgetPlan:
    """The arguments of a :class:`stochprune.Budget`, before the number of steps is known.

    Attributes:
        sparsity: the expected sparsity to hold, in [0, 1); None: the one that the model has at the start.
        kind: ``shift``, ``penalty``, ``kl`` or ``none``.
        strength: of a penalty or of the KL; None: its default.
        schedule: ``constant``, or ``cubic`` from the model's sparsity at the start to ``sparsity``.
        ramp: the part of the training's steps in which the cubic falls; then it stays.
        scope: ``global``, or ``layer`` for a budget in each layer.

    Raises:
        ValueError: a ramp outside (0, 1].
    """

    sparsity: float | None = None
    kind: Kind = "shift"
    strength: float | None = None
    schedule: Schedule = "constant"
    ramp: float = 0.75
    scope: Scope = "global"

    def __post_init__(self) -> None:
        if not 0 < self.ramp <= 1:
            raise ValueError(f"BudgetPlan: ramp must lie in (0, 1], got {self.ramp}")

    def make(self, model: nn.Module, steps: int) -> Budget:
        """Return the budget of a training with so many optimiser steps.

        Raises:
            ValueError: see :class:`stochprune.Budget`.
        """
        return Budget(
            model,
            self.sparsity,
            kind=self.kind,
            strength=self.strength,
            schedule=self.schedule,
            steps=max(1, round(self.ramp * steps)),
            scope=self.scope,
        )


def measured(budget: Budget) -> dict[str, float]:
    """Return numbers for a log: ``mean_keep`` (mean of q), ``expected_sparsity`` (1 minus it) and ``flipped``.

    ``flipped`` is the number of weights whose q has crossed 1/2 since the start.
    """
    keep = budget.kept() / budget.count
    return {"mean_keep": keep, "expected_sparsity": 1 - keep, "flipped": budget.flips.count()}


class BudgetHolder:
    """Base of the callbacks of all libraries.

    Args:
        sparsity: see :class:`BudgetPlan`.
        harden: prune at the end of the training, see :func:`stochprune.harden`.
        plan: the other fields of the plan: ``kind``, ``strength``, ``schedule``, ``ramp`` and ``scope``. The kinds
            ``penalty`` and ``kl`` need ``callback.budget.penalty()`` in the loss.

    Attributes:
        budget: made when the training begins; None before.
    """

    def __init__(self, sparsity: float | None = None, *, harden: bool = False, **plan: Any) -> None:
        self.plan, self.harden = BudgetPlan(sparsity, **plan), harden
        self.budget: Budget | None = None

    def prune(self, model: nn.Module) -> None:
        """Prune a model at the end of its training, if that is wanted."""
        if self.harden:
            harden_model(model, self.plan.sparsity, scope=self.plan.scope)
