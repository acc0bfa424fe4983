"""Random pruning."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from stochprune.scores._common import Examples, LossFunction, prunable_weights
from stochprune.seeding import generator


def random(
    model: nn.Module, loss_fn: LossFunction | None = None, batches: Examples | None = None, *, seed: int = 0
) -> dict[str, Tensor]:
    """Uniform in [0, 1). ``loss_fn`` and ``batches`` are not used.

    A weight's scores depend on ``seed``, its name and its shape alone, not on the model's other layers.

    Args:
        seed: 0 .. 2^64 - 1.

    Returns:
        By weight name, a float32 tensor of the weight's shape.

    Raises:
        ValueError: no prunable layer, or a seed outside its range.
    """
    return {
        name: torch.from_numpy(generator(seed, "random", name).random(weight.shape, np.float32)).to(weight.device)
        for name, weight in prunable_weights(model).items()
    }
