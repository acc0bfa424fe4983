"""The common shift of all logits that gives their keep probabilities a wanted sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def expected_kept(logits: Sequence[Tensor]) -> Tensor:
    """Return sum(sigmoid(logit)) over all tensors, a float64 scalar on the device of the first."""
    device = logits[0].device
    return torch.stack([torch.sigmoid(tensor).sum(dtype=torch.float64).to(device) for tensor in logits]).sum()


def solve_shift(logits: Sequence[Tensor], budget: float) -> float:
    """Return the c for which sum(sigmoid(logit + c)) is ``budget``, by Newton's method inside a shrinking bracket.

    It stops at a relative error of four roundings of the logits' dtype, or 1e-12. Sums are in float64.

    Raises:
        ValueError: ``budget`` is not strictly between 0 and the number of logits.
    """
    flat = torch.cat([tensor.detach().reshape(-1).to(logits[0].device) for tensor in logits])
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
