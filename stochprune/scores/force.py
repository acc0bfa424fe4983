"""Progressive sensitivity pruning: iterative SNIP and FORCE."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.scores._common import (
    Data,
    Loss,
    all_finite,
    gradients,
    mean_over_examples,
    needed,
    prunable_weights,
    repeatable,
    wide,
)
from stochprune.scores._rounds import Schedule, in_rounds


@checked
def force(
    model: nn.Module,
    loss_fn: Loss = None,
    batches: Data = None,
    *,
    sparsity: float = 0.9,
    rounds: int = 20,
    schedule: Schedule = "exponential",
) -> dict[str, Tensor]:
    """Return the FORCE scores ``|w g|``: w is unmasked, g is the gradient under the mask of the last round but one.

    A weight that is pruned in one round has a score in the next, so it may return. The result is chaotic: one weight
    that changes its mask in an early round changes the gradients of all later rounds. If all weights of LeNet-300-100
    change by one part in a million, the masks of 95 % for MNIST share 50 to 64 % of the kept weights; those of
    :func:`snip` are the same (docs/results/prospr.md). So another machine may choose another mask. De Jorge, Sanyal,
    Behl, Torr, Rogez and Dokania 2021, "Progressive skeletonization: trimming more fat from a network at
    initialization" (arXiv 2006.09081), section 4.

    Args:
        loss_fn, batches: as for :func:`snip`; the batches are iterated once in each round.
        sparsity: the sparsity at which the scores will be cut.
        rounds: number of rounds; with 1 the scores are those of SNIP.
        schedule: the fraction kept after round t: ``"exponential"``, ``(1 - sparsity)^(t / rounds)``, or
            ``"linear"``.

    Returns:
        By weight name, a tensor of the weight's shape; float64 if the weight is, else float32.

    Raises:
        ValueError: no loss function or examples, a sparsity outside [0, 1), less than one round, an unknown schedule,
            no prunable layer, or a score that is not finite.
    """
    return _progressive("force", model, loss_fn, batches, sparsity, rounds, schedule, may_return=True)


@checked
def iterative_snip(
    model: nn.Module,
    loss_fn: Loss = None,
    batches: Data = None,
    *,
    sparsity: float = 0.9,
    rounds: int = 20,
    schedule: Schedule = "exponential",
) -> dict[str, Tensor]:
    """Return the scores of SNIP in rounds: ``|w g|`` under the mask of the last round but one.

    Pruned weights have the score 0 and cannot return. The result is as chaotic as that of :func:`force` (57 to 72 % of
    the kept weights in common). De Jorge et al. 2021 (arXiv 2006.09081), section 4. Arguments and errors are those of
    :func:`force`.
    """
    return _progressive("iterative_snip", model, loss_fn, batches, sparsity, rounds, schedule, may_return=False)


def _progressive(
    name: str,
    model: nn.Module,
    loss_fn: Loss,
    batches: Data,
    sparsity: float,
    rounds: int,
    schedule: Schedule,
    may_return: bool,
) -> dict[str, Tensor]:
    loss_fn, batches = needed(name, loss_fn, batches)
    batches = repeatable(batches)
    weights = {key: wide(weight) for key, weight in prunable_weights(model).items()}

    def score(masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        mean = mean_over_examples(gradients(model, loss_fn, batches, masks))
        scores = {key: (weight * mean[key]).abs() for key, weight in weights.items()}
        if masks is None or may_return:
            return scores
        return {key: torch.where(masks[key], value, 0) for key, value in scores.items()}

    return all_finite(name, in_rounds(score, sparsity, rounds, schedule))
