"""The global ranking of scores that are split over processes: each sends counts, never its scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from stochprune.shards import gathered, like_shard, local_shard, names_by_layout, reduced

_DIGIT = 16
"""Bits that one pass over the scores decides; the processes add up 65,536 counts for it."""


def keep_highest(scores: Mapping[str, Tensor], sparsity: float, ties: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return bool masks like the scores, of which some are DTensors: those of ``from_scores`` with scope ``global``."""
    names = sorted(scores)
    total = sum(scores[name].numel() for name in names)
    wanted = total - round(sparsity * total)
    undecided = {name: torch.ones_like(_part(scores[name]), dtype=torch.bool) for name in names}
    kept = {name: torch.zeros_like(mask) for name, mask in undecided.items()}
    for values in (scores, ties):
        left = sum(_counts(undecided, scores))
        if values is None or not 0 < wanted < left:
            continue
        cut = _cut(values, undecided, left - wanted + 1)
        for name, keys in _keys(values, names):
            kept[name] |= undecided[name] & (keys > cut)
            undecided[name] &= keys == cut
        wanted = total - round(sparsity * total) - sum(_counts(kept, scores))
    shares = evenly(_counts(undecided, scores), wanted)
    for name, share in zip(names, shares, strict=True):
        kept[name] |= _first(undecided[name], scores[name], share)
    return {name: like_shard(kept[name], scores[name]) for name in scores}


def evenly(numbers: Sequence[int], wanted: int) -> list[int]:
    """Return how many of ``numbers`` equal weights each tensor keeps of ``wanted`` in all: the same fraction of each.

    The r-th weight of n has the position (r + 1/2) / n, and the first positions are kept.
    """
    total, slack = sum(numbers), len(numbers) + 2
    if wanted >= total:
        return [*numbers]
    sure = [max(0, number * wanted // total - slack) for number in numbers]
    near = [
        ((rank + 0.5) / number, tensor)
        for tensor, number in enumerate(numbers)
        for rank in range(sure[tensor], min(number, sure[tensor] + 2 * slack + 1))
    ]
    for _, tensor in sorted(near)[: wanted - sum(sure)]:
        sure[tensor] += 1
    return sure


def _part(tensor: Tensor) -> Tensor:
    return local_shard(tensor.detach()).tensor


def _keys(values: Mapping[str, Tensor], names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield this process's part of each tensor as int64 numbers in the order of its values."""
    dtype = _dtype(values)
    for name in names:
        bits = (_part(values[name]).to(dtype) + 0.0).contiguous()  # + 0.0 makes -0.0 positive
        signed = bits.view(torch.int64 if dtype == torch.float64 else torch.int32)
        yield name, torch.where(signed < 0, signed ^ torch.iinfo(signed.dtype).max, signed).long()


def _dtype(values: Mapping[str, Tensor]) -> torch.dtype:
    wide = any(tensor.dtype == torch.float64 for tensor in values.values())
    return torch.float64 if wide else torch.float32


def _cut(values: Mapping[str, Tensor], among: Mapping[str, Tensor], k: int) -> int:
    """Return the key of the k-th smallest value, from 1, of those that ``among`` selects; digit by digit."""
    bits = 64 if _dtype(values) == torch.float64 else 32
    cut, above = 0, -(1 << (bits - 1))  # the digits that are decided, as a key that is at most the wanted one
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        counts = _histogram(values, among, above, shift)
        ends = counts.cumsum(0)
        digit = int((ends < k).sum())
        k -= int(ends[digit - 1]) if digit else 0
        above += digit << shift
        cut = above
    return cut


def _histogram(values: Mapping[str, Tensor], among: Mapping[str, Tensor], above: int, shift: int) -> Tensor:
    """Return how many values have each next digit, int64 [65536]; their digits so far are those of ``above``."""
    found = []
    for names in names_by_layout({name: values[name] for name in among}):
        counts = torch.zeros(1 << _DIGIT, dtype=torch.int64, device=among[names[0]].device)
        for name, keys in _keys(values, names):
            digit = (keys[among[name]] >> shift) - (above >> shift)
            digit = digit[(digit >= 0) & (digit < 1 << _DIGIT)]
            counts += torch.bincount(digit, minlength=1 << _DIGIT)
        found.append(reduced(counts, values[names[0]]).cpu())
    return torch.stack(found).sum(0)


def _counts(masks: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> list[int]:
    """Return how many entries of each mask are True, over all processes."""
    found: dict[str, int] = {}
    for names in names_by_layout({name: like[name] for name in masks}):
        counts = torch.stack([masks[name].count_nonzero().to(masks[names[0]].device) for name in names])
        found |= zip(names, reduced(counts, like[names[0]]).tolist(), strict=True)
    return [found[name] for name in masks]


def _first(mask: Tensor, like: Tensor, count: int) -> Tensor:
    """Return this process's part of a mask of which only the first ``count`` entries remain; it is gathered for it."""
    if not count:
        return torch.zeros_like(mask)
    whole = gathered(like_shard(mask, like))
    first = whole & (whole.flatten().cumsum(0).view(whole.shape) <= count)
    part = local_shard(like.detach())
    return part._replace(tensor=mask).part_of(first)
