"""Scores and masks of groups of weights that are kept or pruned together: rows, columns and blocks."""

from __future__ import annotations

import math

from torch import Tensor

from stochprune.functional.structured import block_means, block_shape, expand_blocks


def group_scores(op: str, name: str, score: Tensor, pattern: str) -> Tensor:
    """Return the mean score of each group, [groups of rows, groups of columns].

    Args:
        score: [N, ...]; a row is an entry of the first dimension, such as a filter. Only ``rows`` takes more than two
            dimensions.
        pattern: ``rows``, ``columns`` or ``RxC``.
    """
    if score.dim() < 2 or (score.dim() > 2 and pattern != "rows"):
        raise ValueError(f"{op}: pattern {pattern!r} needs matrices, {name} is {tuple(score.shape)}: leave it out")
    return block_means(score.flatten(1), _block(f"{op}: {name}", score, pattern))


def expand_groups(mask: Tensor, score: Tensor, pattern: str) -> Tensor:
    """Return the mask of the groups as a mask of the weights, of the shape of ``score``."""
    return expand_blocks(mask, _block("", score, pattern)).view(score.shape)


def _block(op: str, score: Tensor, pattern: str) -> tuple[int, int]:
    return block_shape(op, pattern, (len(score), math.prod(score.shape[1:])))
