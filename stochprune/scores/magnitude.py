"""Magnitude pruning."""

from __future__ import annotations

from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.nn.selection import Selectors
from stochprune.scores._common import Data, Loss, all_finite, scored_weights


@checked
def magnitude(
    model: nn.Module,
    loss_fn: Loss = None,
    batches: Data = None,
    *,
    include: Selectors | None = None,
    exclude: Selectors | None = None,
) -> dict[str, Tensor]:
    """Return ``|w|`` (Janowsky 1989; Han, Pool, Tran and Dally 2015). ``loss_fn`` and ``batches`` are not used.

    Args:
        include, exclude: as in :func:`prunable_weights`.

    Returns:
        By weight name, a tensor of the weight's shape and dtype.

    Raises:
        ValueError: no prunable layer, or a weight that is not finite.
    """
    weights = scored_weights("magnitude", model, include, exclude)
    return all_finite("magnitude", {name: weight.detach().abs() for name, weight in weights.items()})
