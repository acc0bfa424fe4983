"""Cutting scores into masks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def from_scores(
    scores: Mapping[str, Tensor], sparsity: float, scope: str = "global", *, allow_empty: bool = False
) -> dict[str, Tensor]:
    """Keep the weights of highest score.

    Of N weights exactly ``N - round(sparsity * N)`` are kept. Of equal scores, the one whose name sorts first is kept,
    and within a tensor the one of the lower row-major position; so a mask is a subset of every less sparse one.

    Args:
        scores: floating tensors by weight name; higher means keep.
        sparsity: fraction of weights pruned, in [0, 1).
        scope: ``"global"`` ranks all weights together, N being their number; ``"layer"`` each tensor's apart; ``"row"``
            each output's, an entry of the tensor's first dimension.
        allow_empty: do not object to a tensor of which nothing is kept.

    Returns:
        bool masks by weight name, each on its score's device.

    Raises:
        TypeError: a score that is not floating.
        ValueError: no scores, NaN scores, a sparsity outside [0, 1), an unknown scope, or a tensor left empty.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
    if scope not in ("global", "layer", "row"):
        raise ValueError(f"scope must be 'global', 'layer' or 'row', got {scope!r}")
    _check(scores)
    if scope == "row":
        masks = {name: _keep_top_of_rows(score, sparsity) for name, score in scores.items()}
    elif scope == "layer":
        masks = {name: _keep_top(score.flatten(), sparsity).view(score.shape) for name, score in scores.items()}
    else:
        masks = _from_global_ranking(scores, sparsity)
    emptied = [name for name, mask in masks.items() if mask.numel() and not mask.any()]
    if emptied and not allow_empty:
        raise ValueError(
            f"sparsity {sparsity} leaves no weight in {', '.join(emptied)}: choose a lower sparsity"
            + (", or scope='layer'" if scope == "global" else "")
            + " (allow_empty=True keeps such a mask)"
        )
    return masks


def _from_global_ranking(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    names = sorted(scores)
    device = scores[names[0]].device
    kept = _keep_top(torch.cat([scores[name].flatten().to(device) for name in names]), sparsity)
    parts = dict(zip(names, kept.split([scores[name].numel() for name in names]), strict=True))
    return {name: parts[name].view(score.shape).to(score.device) for name, score in scores.items()}


def _keep_top(scores: Tensor, sparsity: float) -> Tensor:
    """bool [n]: the n - round(sparsity * n) highest of [n] scores; of equal ones the first."""
    count = scores.numel() - round(sparsity * scores.numel())
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    cut = scores.kthvalue(scores.numel() - count + 1).values
    kept = scores > cut
    ties = (scores == cut).nonzero().flatten()
    kept[ties[: count - int(kept.sum())]] = True
    return kept


def _keep_top_of_rows(score: Tensor, sparsity: float) -> Tensor:
    """bool like ``score`` [rows, ...]: of each row's n entries the n - round(sparsity * n) highest."""
    if score.numel() == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    rows = score.reshape(len(score), -1)
    return _highest(rows, rows.shape[1] - round(sparsity * rows.shape[1])).view(score.shape)


def n_of_m(scores: Mapping[str, Tensor], n: int, m: int) -> dict[str, Tensor]:
    """Keep the n of highest score of every m weights that follow one another in a row, such as 2 of 4.

    Args:
        scores: floating tensors by weight name; a row is an entry of the first dimension, flattened.

    Returns:
        bool masks by weight name. Of equal scores the first is kept.

    Raises:
        TypeError: a score that is not floating.
        ValueError: no scores, NaN scores, n outside 1 .. m, or rows that m does not divide.
    """
    if not 1 <= n <= m:
        raise ValueError(f"n must lie in 1 .. m, got n {n} and m {m}")
    _check(scores)
    masks = {}
    for name, score in scores.items():
        width = score.numel() // max(1, len(score))
        if width % m:
            raise ValueError(f"{m} does not divide the {width} weights of a row of {name}")
        masks[name] = _highest(score.reshape(-1, m), n).view(score.shape)
    return masks


def _highest(rows: Tensor, count: int) -> Tensor:
    """bool [rows, n]: the ``count`` highest of each row, of equal ones the first."""
    order = rows.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order[:, :count], True)


def _check(scores: Mapping[str, Tensor]) -> None:
    if not any(score.numel() for score in scores.values()):
        raise ValueError("there are no scores")
    for name, score in scores.items():
        if not score.is_floating_point():
            raise TypeError(f"the score of {name} must be floating, got {score.dtype}")
        if bool(score.isnan().any()):
            raise ValueError(f"{int(score.isnan().sum())} of {score.numel()} scores of {name} are NaN")


def sparsity(masks: Mapping[str, Tensor]) -> float:
    """The fraction of weights that the masks prune.

    Raises:
        ValueError: there are no weights.
    """
    total = sum(mask.numel() for mask in masks.values())
    if not total:
        raise ValueError("there are no masks")
    return 1 - sum(int(mask.count_nonzero()) for mask in masks.values()) / total
