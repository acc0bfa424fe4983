"""Constraint: what a training holds in every step, besides minimising its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from stochprune.training.state import State


class Constraint:
    """A constraint on every step of a training. This base class does nothing."""

    def penalty(self) -> Tensor | float:
        """Return a term to add to the loss of each batch."""
        return 0.0

    def before_step(self) -> None:
        """Change the gradients before the optimiser's step."""

    def after_step(self) -> None:
        """Change the parameters after the optimiser's step."""
        self.hold()

    def hold(self) -> None:
        """Change the parameters so that they meet the constraint."""

    def measure(self, state: State) -> dict[str, float]:
        """Return numbers for the history at the end of an epoch."""
        return {}
