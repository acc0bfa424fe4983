"""The common shift of all logits that gives their keep probabilities a wanted sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stochprune.nn.layer import MaskedLayer
from stochprune.seeding import SEED_LIMIT, derived_seed
from stochprune.shards import local_shard
from stochprune.training.shards import store_rounded


def expected_kept(logits: Sequence[Tensor]) -> Tensor:
    """Return sum(sigmoid(logit)) over all tensors, a float64 scalar on the device of the first."""
    device = logits[0].device
    return torch.stack([torch.sigmoid(_wide(tensor)).sum(dtype=torch.float64).to(device) for tensor in logits]).sum()


def solve_shift(logits: Sequence[Tensor], budget: float) -> float:
    """Return the c for which sum(sigmoid(logit + c)) is ``budget``, by Newton's method inside a shrinking bracket.

    It stops at a relative error of four roundings of the logits' dtype, or 1e-12. Sums are in float64; logits of 16
    bits count as float32.

    Raises:
        ValueError: ``budget`` is not strictly between 0 and the number of logits.
    """
    flat = torch.cat([_wide(tensor.detach()).reshape(-1).to(logits[0].device) for tensor in logits])
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


@torch.no_grad()
def add_shift(layer: MaskedLayer, shift: float, draw: int) -> None:
    """Add a shift to the logits of a layer; bfloat16 ones are rounded stochastically, by the bits of ``draw``."""
    logits = layer.mask_logits
    if logits.dtype != torch.bfloat16:
        logits.add_(shift)
        return
    shard = local_shard(logits.detach())
    seed = derived_seed(int(layer.mask_seed) % SEED_LIMIT, "shift of a budget")  # not that of masks or of an optimiser
    store_rounded(shard.tensor.float().add_(shift), shard, seed=seed, draw=draw, stream=layer.stream)
    torch.autograd.graph.increment_version(logits)


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 or float64; in 16 bits, probabilities near 1 would be 1/256 apart."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
