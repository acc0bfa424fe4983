"""Pruning in rounds: each round starts from the mask of the round before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from stochprune.masks import from_scores

Schedule = Literal["exponential", "linear"]


def in_rounds(
    score: Callable[[Mapping[str, Tensor] | None], dict[str, Tensor]],
    sparsity: float,
    rounds: int,
    schedule: Schedule = "exponential",
) -> dict[str, Tensor]:
    """Return the scores of the last of ``rounds``; their cut at ``sparsity`` is the last round's mask.

    Round t keeps the fraction ``(1 - sparsity)^(t / rounds)`` (exponential: each round prunes the same share of the
    remaining weights) or ``1 - sparsity t / rounds`` (linear).

    Args:
        score: a function from the masks of the round before (None in the first round) to scores.

    Raises:
        ValueError: a sparsity outside [0, 1), less than one round, or an unknown schedule.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if schedule not in ("exponential", "linear"):
        raise ValueError(f"schedule must be 'exponential' or 'linear', got {schedule!r}")
    scores = score(None)
    for t in range(1, rounds):
        share = t / rounds
        pruned = 1 - (1 - sparsity) ** share if schedule == "exponential" else sparsity * share
        scores = score(from_scores(scores, pruned, allow_empty=True))
    return scores
