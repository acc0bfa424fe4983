"""The common shift of all logits that gives their keep probabilities a wanted sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from stochprune.masks.probabilities import wide
from stochprune.nn.layer import MaskedLayer
from stochprune.seeding import SEED_LIMIT, derived_seed
from stochprune.shards import by_layout, local_shard, reduced
from stochprune.training.store_rounded import store_rounded


def solve_shift(logits: Sequence[Tensor], budget: float) -> float:
    """Return the c for which sum(sigmoid(logit + c)) is ``budget``, by Newton's method inside a shrinking bracket.

    It stops at a relative error of four roundings of the logits' dtype, or 1e-12. Sums are in float64; logits of 16
    bits count as float32. Of sharded logits, processes send sums only, and all find the same shift.

    Raises:
        ValueError: ``budget`` is not strictly between 0 and the number of logits.
    """
    count, device = sum(tensor.numel() for tensor in logits), local_shard(logits[0].detach()).tensor.device
    if not 0 < budget < count:
        raise ValueError(f"the budget must lie strictly between 0 and {count} weights, got {budget}")
    parts = [(_flat(group, device), group[0]) for group in by_layout(logits)]

    centre = math.log(budget / (count - budget))  # if all logits were equal, they would have this value
    ends = [reduced(_ends(flat), tensor, dist.ReduceOp.MAX) for flat, tensor in parts]
    low, high = centre - max(end[0].item() for end in ends), centre + max(end[1].item() for end in ends)
    shift = min(max(0.0, low), high)
    tolerance = max(4 * max(torch.finfo(flat.dtype).eps for flat, _ in parts), 1e-12) * budget
    for _ in range(100):
        q = [flat.add(shift).sigmoid_() for flat, _ in parts]
        kept = _sum(q, parts, lambda part: part.sum(dtype=torch.float64))
        excess = kept - budget
        if abs(excess) <= tolerance:
            break
        low, high = (low, shift) if excess > 0 else (shift, high)
        slope = kept - _sum(q, parts, lambda part: torch.dot(part, part).double())  # the sum of q (1 - q)
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


def _flat(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return this process's parts of tensors as one vector."""
    return torch.cat([wide(local_shard(each.detach()).tensor).reshape(-1).to(device) for each in tensors])


def _ends(flat: Tensor) -> Tensor:
    """Return the largest value and the negative of the smallest; those of an empty part lose every comparison."""
    if not flat.numel():
        return flat.new_full((2,), -math.inf)
    smallest, largest = torch.aminmax(flat)
    return torch.stack([largest, -smallest])


def _sum(values: list[Tensor], parts: list[tuple[Tensor, Tensor]], function: Callable[[Tensor], Tensor]) -> float:
    """Return the sum of ``function`` over the values that belong to these parts, and over all processes."""
    each = zip(values, parts, strict=True)
    return sum(reduced(function(value), tensor).item() for value, (_, tensor) in each)
