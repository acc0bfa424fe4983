"""Progressive sensitivity pruning: iterative SNIP and FORCE."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.data.batch_loss import BatchLoss
from stochprune.nn.selection import Selectors
from stochprune.scores._common import (
    Data,
    Examples,
    Loss,
    all_finite,
    gradients,
    mean_over_examples,
    needed,
    repeatable,
    scored_weights,
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
    include: Selectors | None = None,
    exclude: Selectors | None = None,
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
        include, exclude: as in :func:`prunable_weights`.

    Returns:
        By weight name, a tensor of the weight's shape; float64 if the weight is, else float32.

    Raises:
        ValueError: no loss function or examples, a sparsity outside [0, 1), less than one round, an unknown schedule,
            no prunable layer, or a score that is not finite.
    """
    loss, batches = needed("force", loss_fn, batches)
    weights = scored_weights("force", model, include, exclude)
    score = _sensitivity(model, loss, repeatable(batches), weights, may_return=True)
    return all_finite("force", in_rounds(score, sparsity, rounds, schedule))


@checked
def iterative_snip(
    model: nn.Module,
    loss_fn: Loss = None,
    batches: Data = None,
    *,
    sparsity: float = 0.9,
    rounds: int = 20,
    schedule: Schedule = "exponential",
    include: Selectors | None = None,
    exclude: Selectors | None = None,
) -> dict[str, Tensor]:
    """Return the scores of SNIP in rounds: ``|w g|`` under the mask of the last round but one.

    Pruned weights have the score 0 and cannot return. The result is as chaotic as that of :func:`force` (57 to 72 % of
    the kept weights in common). De Jorge et al. 2021 (arXiv 2006.09081), section 4. Arguments and errors are those of
    :func:`force`.
    """
    loss, batches = needed("iterative_snip", loss_fn, batches)
    weights = scored_weights("iterative_snip", model, include, exclude)
    score = _sensitivity(model, loss, repeatable(batches), weights, may_return=False)
    return all_finite("iterative_snip", in_rounds(score, sparsity, rounds, schedule))


def _sensitivity(
    model: nn.Module,
    loss: BatchLoss,
    batches: Examples,
    parameters: Mapping[str, nn.Parameter],
    may_return: bool,
) -> Callable[[Mapping[str, Tensor] | None], dict[str, Tensor]]:
    """Return a function from the masks of the round before to ``|w g|`` under them."""
    weights = {key: wide(weight) for key, weight in parameters.items()}

    def score(masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        mean = mean_over_examples(gradients(model, loss, batches, parameters, masks))
        scores = {key: (weight * mean[key]).abs() for key, weight in weights.items()}
        if masks is None or may_return:
            return scores
        return {key: torch.where(masks[key], value, 0) for key, value in scores.items()}

    return score
