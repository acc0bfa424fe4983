"""The optimiser of mask fine-tuning that stores few bytes for each logit."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from stochprune.extras import extra
from stochprune.training.in_backward import step_in_backward
from stochprune.training.stochastic_rounding import StochasticRounding


def low_memory_adam(model: nn.Module, seed: int) -> Callable[[list[dict[str, Any]]], Optimizer]:
    """Return a function that makes the optimiser of parameter groups: Adam with moments of eight bits, in backward.

    For a bfloat16 logit that are 2 bytes, 2 of moments, and a gradient that lives for one layer at a time. Tensors of
    fewer than 4,096 numbers have moments of 32 bits.

    Args:
        model: has the parameters of the groups when the function is called.
        seed: of the rounding.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    with extra("lowbit", "low_memory"):
        adam = importlib.import_module("bitsandbytes.optim").Adam8bit  # without types

    def rounding(groups: list[dict[str, Any]]) -> Optimizer:
        return StochasticRounding(groups, adam, model=model, seed=seed)

    return lambda groups: step_in_backward(groups, rounding)
