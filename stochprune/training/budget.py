"""Budgets: they hold the expected number of kept weights, sum(q), at its value at the start.

Without a budget all q drift to 1 when the expected loss of a trainable network is minimised, because random pruning
only increases the loss. There are three budgets:

``shift``    adds one number to all logits after each step, so that sum(q) equals the budget. It is exact, needs no
             strength, and lets the probability of one weight grow at the expense of others.
``penalty``  adds strength * (sum(q) / budget - 1)^2 to the loss.
``kl``       adds strength * KL(q || q at the start), in nats summed over weights, to the loss. It holds the
             probability of each weight, not only their sum.

``shift`` is the default, because there is nothing to tune. Error in per cent after pruning and retraining, on held-out
digits (LeNet-300-100; magnitude 95%, SNIP 98%, random 95%, random 98%; mean of 4 seeds): shift 2.3, 5.0, 3.7, 6.6;
penalty of strength 100 2.5, 4.7, 3.5, 4.7, of strength 1000 2.9, 4.7, 4.5, 30.1. So a penalty can be as good once its
strength is tuned. A KL of strength 1e-3 (2 seeds: 18.0, 14.5, 9.6, 60.7) kept weights from changing that should
change, and still let the sum drift by 8%.
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
    """Return sum(sigmoid(logit)) over all tensors, a float64 scalar."""
    return torch.stack([torch.sigmoid(tensor).sum(dtype=torch.float64) for tensor in logits]).sum()


def solve_shift(logits: Sequence[Tensor], budget: float) -> float:
    """Return the c for which sum(sigmoid(logit + c)) is ``budget``, by Newton's method inside a shrinking bracket.

    It stops at a relative error of four roundings of the logits' dtype, or 1e-12. Sums are in float64.

    Raises:
        ValueError: ``budget`` is not strictly between 0 and the number of logits.
    """
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in logits])
    if not 0 < budget < flat.numel():
        raise ValueError(f"the budget must lie strictly between 0 and {flat.numel()} weights, got {budget}")
    centre = math.log(budget / (flat.numel() - budget))  # if all logits were equal, they would have this value
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
    """Stores sum(q) at the start, which the subclasses hold; holds nothing itself."""

    def __init__(self, logits: Sequence[Tensor]) -> None:
        self.logits = logits
        self.target = expected_kept(logits).item()

    def kept(self) -> float:
        """Return the present sum(q)."""
        return expected_kept(self.logits).item()


class ShiftBudget(Budget):
    """Adds one number to all logits after each step, so that sum(q) equals the budget."""

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
    """Return the budget of ``config``, which holds the present sum(q) of ``logits``."""
    if config.budget == "shift":
        return ShiftBudget(logits)
    if config.budget == "penalty":
        return PenaltyBudget(logits, config.penalty_strength)
    if config.budget == "kl":
        return KLBudget(logits, config.kl_strength)
    return Budget(logits)
