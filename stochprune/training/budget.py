"""Holding the expected number of kept weights, sum(q), at its start.

Without a budget the expected loss of a trainable network drifts to q = 1: noise only costs. Three ways to hold it:

``shift``    after each step one number is added to all logits, so that sum(q) is the budget: exact, no strength to
             choose, and weights trade places at a common price.
``penalty``  strength * (sum(q) / budget - 1)^2 is added to the loss.
``kl``       strength * KL(q || q at the start), in nats summed over weights, is added to the loss: each weight is
             held, not only their sum.

``shift`` is the default: there is nothing to tune. Error in per cent after the cut and retraining, on held-out digits
(LeNet-300-100; magnitude 95%, SNIP 98%, random 95%, random 98%; mean of 4 seeds): shift 2.3, 5.0, 3.7, 6.6; penalty of
strength 100 2.5, 4.7, 3.5, 4.7, of strength 1000 2.9, 4.7, 4.5, 30.1. So a penalty can be as good once its strength is
found. A KL of strength 1e-3 (2 seeds: 18.0, 14.5, 9.6, 60.7) held back weights that should move and still let the sum
drift by 8%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stochprune import functional
from stochprune.training.config import FinetuneConfig
from stochprune.training.loop import Constraint


def expected_kept(logits: Sequence[Tensor]) -> Tensor:
    """sum(sigmoid(logit)) over all the tensors: a float64 scalar."""
    return torch.stack([torch.sigmoid(tensor).sum(dtype=torch.float64) for tensor in logits]).sum()


def solve_shift(logits: Sequence[Tensor], budget: float) -> float:
    """The number c for which sum(sigmoid(logit + c)) is ``budget``, by Newton's method inside a shrinking bracket.

    It stops at a relative error of four roundings of the logits' dtype, or 1e-12; sums are in float64.

    Raises:
        ValueError: ``budget`` is not strictly between 0 and the number of logits.
    """
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in logits])
    if not 0 < budget < flat.numel():
        raise ValueError(f"the budget must lie strictly between 0 and {flat.numel()} weights, got {budget}")
    centre = math.log(budget / (flat.numel() - budget))  # the common logit that meets the budget
    smallest, largest = torch.aminmax(flat)
    low, high = centre - largest.item(), centre - smallest.item()
    shift = min(max(0.0, low), high)
    tolerance = max(4 * torch.finfo(flat.dtype).eps, 1e-12) * budget
    for _ in range(100):
        q = flat.add(shift).sigmoid_()
        kept = q.sum(dtype=torch.float64).item()
        excess = kept - budget
        if abs(excess) <= tolerance:
            break
        low, high = (low, shift) if excess > 0 else (shift, high)
        slope = kept - torch.dot(q, q).item()  # the sum of q (1 - q)
        newton = shift - excess / slope if slope > 0 else math.inf
        shift = newton if low < newton < high else (low + high) / 2
    return shift


class Budget(Constraint):
    """Holds nothing, but knows the start that every budget is held to."""

    def __init__(self, logits: Sequence[Tensor]) -> None:
        self.logits = logits
        self.target = expected_kept(logits).item()

    def kept(self) -> float:
        """sum(q) now."""
        return expected_kept(self.logits).item()


class ShiftBudget(Budget):
    """Projects after each step by a common shift of all logits."""

    def __init__(self, logits: Sequence[Tensor]) -> None:
        for tensor in logits:
            if tensor.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"budget shift needs float32 or float64 mask logits, got {tensor.dtype}: "
                    "a small shift is lost in rounding. Keep the logits in float32, or choose budget penalty"
                )
        super().__init__(logits)

    @torch.no_grad()
    def after_step(self) -> None:
        shift = solve_shift(self.logits, self.target)
        for tensor in self.logits:
            tensor.add_(shift)


class PenaltyBudget(Budget):
    """Adds strength * (sum(q) / budget - 1)^2 to the loss."""

    def __init__(self, logits: Sequence[Tensor], strength: float) -> None:
        super().__init__(logits)
        self.strength = strength

    def penalty(self) -> Tensor:
        return self.strength * (expected_kept(self.logits) / self.target - 1).square()


class KLBudget(Budget):
    """Adds strength * KL(q || q at the start) to the loss, in nats summed over weights."""

    def __init__(self, logits: Sequence[Tensor], strength: float) -> None:
        super().__init__(logits)
        self.strength = strength
        self.start = [tensor.detach().clone() for tensor in logits]

    def penalty(self) -> Tensor:
        return self.strength * sum(
            (functional.bernoulli_kl(tensor, start) for tensor, start in zip(self.logits, self.start, strict=True)),
            start=torch.zeros((), dtype=torch.float64, device=self.logits[0].device),
        )


def make_budget(config: FinetuneConfig, logits: Sequence[Tensor]) -> Budget:
    """The budget that ``config`` asks for, held to where ``logits`` are now."""
    if config.budget == "shift":
        return ShiftBudget(logits)
    if config.budget == "penalty":
        return PenaltyBudget(logits, config.penalty_strength)
    if config.budget == "kl":
        return KLBudget(logits, config.kl_strength)
    return Budget(logits)
