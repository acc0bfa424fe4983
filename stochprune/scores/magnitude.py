"""Magnitude pruning."""

from __future__ import annotations

from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.scores._common import Data, Loss, all_finite, prunable_weights


@checked
def magnitude(model: nn.Module, loss_fn: Loss = None, batches: Data = None) -> dict[str, Tensor]:
    """Return ``|w|`` (Janowsky 1989; Han, Pool, Tran and Dally 2015). ``loss_fn`` and ``batches`` are not used.

    Returns:
        By weight name, a tensor of the weight's shape and dtype.

    Raises:
        ValueError: no prunable layer, or a weight that is not finite.
    """
    return all_finite("magnitude", {name: weight.detach().abs() for name, weight in prunable_weights(model).items()})
