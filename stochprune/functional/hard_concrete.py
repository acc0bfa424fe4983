"""Hard concrete masks in closed form: their expected L0 norm, and the mask of the evaluation mode."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stochprune.functional._address import check_estimator
from stochprune.functional._checks import check_floating
from stochprune.reference import STRETCH


def expected_l0(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the expected number of non-zero hard concrete masks, the L0 penalty of Louizos et al. 2018 (equation 12).

    This is ``sum sigmoid(logit - temperature * ln(-gamma / zeta))`` with the interval gamma = -0.1, zeta = 1.1. Masks
    use uniforms with 2^15 values, so the sampled probability of each mask agrees with this one up to 2^-15.

    Args:
        logits: floating, any shape.
        temperature: the temperature of the masks.

    Returns:
        float64 scalar, differentiable in ``logits``.

    Raises:
        TypeError: ``logits`` is not floating.
        ValueError: a temperature that is not positive.
    """
    check_estimator("expected_l0", "hard_concrete", temperature)
    check_floating("expected_l0", logits=logits)
    low, high = STRETCH
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.sigmoid(wide - temperature * math.log(-low / high)).sum(dtype=torch.float64)


def hard_concrete_gate(logits: Tensor) -> Tensor:
    """Return the evaluation mode's mask ``clamp(1.2 sigmoid(logit) - 0.1, 0, 1)`` (Louizos et al. 2018, equation 13).

    It is not the mean of the sampled masks: it is zero for logits up to -2.40, one from 2.40 on, and independent of the
    temperature.

    Args:
        logits: floating, any shape.

    Returns:
        A tensor with the shape and dtype of ``logits``; differentiable.
    """
    check_floating("hard_concrete_gate", logits=logits)
    low, high = STRETCH
    return (torch.sigmoid(logits) * (high - low) + low).clamp(0, 1)
