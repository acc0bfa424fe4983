"""Make masks from scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from stochprune import patterns
from stochprune.masks.groups import expand_groups, group_scores
from stochprune.masks.ranking import keep_highest
from stochprune.shards import by_rows, gathered, is_dtensor, local_shard, reduced, split_like

SCOPES = ("global", "layer", "row")


class EmptyLayerError(ValueError):
    """A cut that would leave a layer without weights; in a study of many cells it ends one of them.

    Attributes:
        reason: the message without its advice, which names arguments that the caller of a study does not have.
    """

    reason: str = ""


def from_scores(
    scores: Mapping[str, Tensor],
    sparsity: float,
    scope: str = "global",
    *,
    pattern: str | None = None,
    ties: Mapping[str, Tensor] | None = None,
    allow_empty: bool = False,
) -> dict[str, Tensor]:
    """Keep the weights of highest score.

    Of N weights exactly ``N - round(sparsity * N)`` are kept. If scores are equal, the weight with the larger ``ties``
    is kept. If these are equal too, each tensor keeps the same fraction of such weights, up to one weight; within a
    tensor or a row, those at lower row-major positions are kept. So a mask is a subset of every less sparse mask.

    Args:
        scores: floating tensors by weight name; higher means keep. They may be DTensors: processes then send counts,
            and one layer at a time where a pattern or a row is split.
        sparsity: fraction of weights pruned, in [0, 1).
        scope: ``"global"`` ranks all weights together; ``"layer"`` ranks the weights of each tensor separately;
            ``"row"`` those of each output, an entry of the tensor's first dimension. N is the number ranked together.
        pattern: None for single weights. ``"rows"`` keeps or prunes whole rows, such as filters, by their mean score;
            ``"columns"`` and blocks such as ``"16x16"`` likewise, for matrices. N is then the number of groups.
            ``"2:4"`` keeps the best 2 of each 4 neighbours, as :func:`n_of_m`; the sparsity must then be one half.
        ties: floating tensors of the same names and shapes, such as the weights' magnitudes.
        allow_empty: allow a tensor of which nothing is kept.

    Returns:
        bool masks by weight name, each on its score's device, and split like it.

    Raises:
        TypeError: a score that is not a floating tensor, a sparsity that is not a number.
        ValueError: no scores, NaN scores, a sparsity outside [0, 1), an unknown scope or pattern, a pattern that does
            not fit a tensor or the sparsity, ties of other weights, or a tensor left empty (``EmptyLayerError``).
    """
    check_cut("from_scores", sparsity, scope)
    check_scores("from_scores", "score", scores)
    if ties is not None:
        check_scores("from_scores", "tie", ties)
        other = [name for name in {**scores, **ties} if name not in ties or name not in scores]
        other += [name for name in scores if not other and ties[name].shape != scores[name].shape]
        if other:
            raise ValueError(
                "from_scores: ties must have the names and shapes of the scores; they differ in "
                f"{', '.join(map(str, other))}"
            )
    if pattern is not None:
        return _with_pattern(scores, sparsity, scope, pattern, ties, allow_empty)
    if scope == "global":
        masks = _from_global_ranking(scores, sparsity, ties)
    elif scope == "layer":
        masks = {
            name: _from_global_ranking({name: score}, sparsity, ties and {name: ties[name]})[name]
            for name, score in scores.items()
        }
    else:
        masks = {
            name: _keep_top_of_rows(score, sparsity, None if ties is None else ties[name])
            for name, score in scores.items()
        }
    empty = emptied(masks)
    if empty and not allow_empty:
        raise empty_layers("from_scores", "score", scores, empty, sparsity, scope)
    return masks


def _with_pattern(
    scores: Mapping[str, Tensor],
    sparsity: float,
    scope: str,
    pattern: str,
    ties: Mapping[str, Tensor] | None,
    allow_empty: bool,
) -> dict[str, Tensor]:
    if isinstance(pattern, str) and ":" in pattern:
        n, m = patterns.parse(pattern, "from_scores")
        if m and not math.isclose(sparsity, 1 - n / m):
            raise ValueError(f"from_scores: pattern {pattern} prunes {1 - n / m:g} of the weights, got {sparsity}")
        return n_of_m(scores, n, m)
    if pattern == "rows" and scope == "row":
        raise ValueError(
            "from_scores: scope 'row' would rank each group of pattern 'rows' alone, and so keep all or none; "
            "use scope 'layer' or 'global'"
        )

    def grouped(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: group_scores("from_scores", name, gathered(value), pattern) for name, value in values.items()}

    masks = from_scores(grouped(scores), sparsity, scope, ties=ties and grouped(ties), allow_empty=allow_empty)
    return {name: split_like(expand_groups(masks[name], score, pattern), score) for name, score in scores.items()}


def check_cut(op: str, sparsity: float, scope: str) -> None:
    """Raise if sparsity is not a number in [0, 1) or the scope is unknown."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float | np.floating):
        raise TypeError(f"{op}: sparsity must be a number in [0, 1), such as 0.9, got {sparsity!r}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"{op}: sparsity must lie in [0, 1), got {sparsity}: it is the fraction of weights pruned")
    if scope not in SCOPES:
        raise ValueError(f"{op}: scope must be one of {', '.join(map(repr, SCOPES))}, got {scope!r}")


def emptied(masks: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the masks that keep nothing."""
    return [name for name, mask in masks.items() if mask.numel() and not count_true(mask)]


def count_true(mask: Tensor) -> int:
    """Return how many entries are True, over all processes."""
    return int(reduced(local_shard(mask).tensor.count_nonzero(), mask))


def empty_layers(
    op: str, what: str, scores: Mapping[str, Tensor], empty: Sequence[str], sparsity: float, scope: str
) -> EmptyLayerError:
    """Return the error of a cut that left these tensors without a weight; ``what`` is the user's name of a score."""
    names = ", ".join(empty)
    if scope == "global":
        best = max(float(gathered(scores[name]).max()) for name in empty)
        reason = (
            f"sparsity {sparsity} of all weights together leaves no weight in {names}, whose highest {what}, "
            f"{best:.4g}, is below the cut"
        )
        advice = "use scope='layer', which cuts each tensor separately, or a lower sparsity"
    else:
        count = min(scores[name].numel() if scope == "layer" else scores[name][:1].numel() for name in empty)
        reason = (
            f"sparsity {sparsity} leaves no weight in {names}: of the {count} weights of a {scope} it keeps "
            f"{count - round(sparsity * count)}"
        )
        advice = "choose a lower sparsity, or leave small layers out"
    error = EmptyLayerError(f"{op}: {reason}: {advice}")
    error.reason = reason
    return error


def _from_global_ranking(
    scores: Mapping[str, Tensor], sparsity: float, ties: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    if any(is_dtensor(score) for score in scores.values()):
        return keep_highest(scores, sparsity, ties)
    names = sorted(scores)
    device, sizes = scores[names[0]].device, [scores[name].numel() for name in names]

    def joined(tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([tensors[name].flatten().to(device) for name in names])

    kept = _keep_top(joined(scores), sparsity, sizes, None if ties is None else joined(ties))
    parts = dict(zip(names, kept.split(sizes), strict=True))
    return {name: parts[name].view(score.shape).to(score.device) for name, score in scores.items()}


def _keep_top(scores: Tensor, sparsity: float, sizes: Sequence[int], second: Tensor | None) -> Tensor:
    """Return bool [n]: the n - round(sparsity * n) highest of [n] scores of tensors of these sizes, concatenated.

    Of equal scores keep those of the highest ``second`` [n]; if these are equal too, the same fraction of each tensor.
    """
    count = scores.numel() - round(sparsity * scores.numel())
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    cut = _kth_smallest(scores, scores.numel() - count + 1)
    kept = scores > cut
    tied, wanted = (scores == cut).nonzero().flatten(), count - int(kept.sum())
    if second is not None and wanted < len(tied):
        values = second[tied]
        cut = _kth_smallest(values, len(tied) - wanted + 1)
        kept[tied[values > cut]] = True
        tied, wanted = tied[values == cut], wanted - int((values > cut).sum())
    kept[tied[_evenly(tied, sizes)[:wanted]]] = True
    return kept


def _kth_smallest(values: Tensor, k: int) -> Tensor:
    """Return the k-th smallest of [n] values, k from 1; on a CPU numpy finds it several times faster than torch."""
    if values.is_cpu and values.dtype in (torch.float32, torch.float64):
        return values.new_tensor(np.partition(values.detach().numpy(), k - 1)[k - 1])
    return values.kthvalue(k).values


def _evenly(positions: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return int64 [t]: [t] ascending positions, reordered so that their tensors take turns in proportion."""
    borders = torch.tensor([0, *itertools.accumulate(sizes)]).to(positions.device)
    tensor = torch.searchsorted(borders, positions, right=True) - 1
    first = torch.searchsorted(positions, borders)  # index of each tensor's first position
    number = first.diff()
    rank = torch.arange(len(positions), device=positions.device) - first[tensor]
    return ((rank.double() + 0.5) / number[tensor]).argsort(stable=True)


def _keep_top_of_rows(score: Tensor, sparsity: float, ties: Tensor | None = None) -> Tensor:
    """Return bool like ``score`` [rows, ...]: the n - round(sparsity * n) highest of each row's n entries."""
    if is_dtensor(score):
        others = () if ties is None else (ties,)
        return by_rows(lambda part, *second: _keep_top_of_rows(part, sparsity, *second), score, *others)
    if score.numel() == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    rows = score.reshape(len(score), -1)
    second = None if ties is None else ties.reshape(rows.shape)
    return _highest(rows, rows.shape[1] - round(sparsity * rows.shape[1]), second).view(score.shape)


def n_of_m(scores: Mapping[str, Tensor], n: int, m: int) -> dict[str, Tensor]:
    """Keep the n weights of highest score in each group of m consecutive weights of a row, such as 2 of 4.

    Args:
        scores: floating tensors by weight name; a row is an entry of the first dimension, flattened.

    Returns:
        bool masks by weight name. Of equal scores the first is kept.

    Raises:
        TypeError: a score that is not floating.
        ValueError: no scores, NaN scores, n outside 1 .. m, or rows that m does not divide.
    """
    if any(isinstance(k, bool) or not isinstance(k, int) for k in (n, m)) or not 1 <= n <= m:
        raise ValueError(f"n_of_m: n must be an integer in 1 .. m, such as 2 of 4, got n {n!r} and m {m!r}")
    check_scores("n_of_m", "score", scores)
    masks = {}
    for name, score in scores.items():
        width = score.numel() // max(1, len(score))
        if width % m:
            raise ValueError(f"n_of_m: {m} does not divide the {width} weights of a row of {name}: leave it out")
        masks[name] = by_rows(lambda rows: _highest(rows.reshape(-1, m), n).view(rows.shape), score)
    return masks


def _highest(rows: Tensor, count: int, second: Tensor | None = None) -> Tensor:
    """Return bool [rows, n]: the ``count`` highest of each row; ties go to the highest ``second``, then the first."""
    if second is None:
        order = rows.argsort(dim=1, descending=True, stable=True)
    else:
        start = second.argsort(dim=1, descending=True, stable=True)
        order = start.gather(1, rows.gather(1, start).argsort(dim=1, descending=True, stable=True))
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order[:, :count], True)


def check_scores(op: str, what: str, scores: Mapping[str, Tensor]) -> None:
    """Raise if scores are not dense floating tensors by name, without NaN; ``what`` is the user's name of one."""
    if not isinstance(scores, Mapping):
        raise TypeError(f"{op}: {what}s must be a dictionary of tensors by weight name, got {type(scores).__name__}")
    for name, score in scores.items():
        if not isinstance(name, str):
            raise TypeError(f"{op}: {what}s must have weight names as keys, got {name!r}")
        if not isinstance(score, Tensor) or not score.is_floating_point() or score.layout != torch.strided:
            got = f"{score.dtype}, {score.layout}" if isinstance(score, Tensor) else f"a {type(score).__name__}"
            raise TypeError(f"{op}: the {what} of {name} must be a dense floating tensor, got {got}")
        # A compiled graph does not know the values.
        if not torch.compiler.is_compiling() and (bad := count_true(score.isnan())):
            raise ValueError(f"{op}: {bad} of {score.numel()} {what}s of {name} are NaN")
    if not any(score.numel() for score in scores.values()):
        raise ValueError(f"{op}: there are no {what}s, got {list(scores)}")


def sparsity(masks: Mapping[str, Tensor]) -> float:
    """Return the fraction of weights that the masks prune.

    Raises:
        TypeError: masks that are not a dictionary of bool tensors.
        ValueError: there are no weights.
    """
    check_masks("sparsity", masks)
    total = sum(mask.numel() for mask in masks.values())
    if not total:
        raise ValueError(f"sparsity: there are no masks with weights, got {list(masks)}")
    return 1 - sum(map(count_true, masks.values())) / total


def check_masks(op: str, masks: Mapping[str, Tensor]) -> None:
    """Raise if masks are not a dictionary of bool tensors."""
    if not isinstance(masks, Mapping):
        raise TypeError(f"{op}: masks must be a dictionary of bool tensors by weight name, got {type(masks).__name__}")
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.layout != torch.strided:
            got = f"{mask.dtype}, {mask.layout}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            raise TypeError(f"{op}: the mask of {name} must be a dense bool tensor, True where kept, got {got}")
