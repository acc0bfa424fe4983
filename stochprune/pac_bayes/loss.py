"""Losses in [0, 1]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def bounded_cross_entropy(outputs: Tensor, y: Tensor, p_min: float) -> Tensor:
    """Return the cross-entropy with probabilities of at least ``p_min``, divided by ln(1 / p_min): [B] in [0, 1].

    Dziugaite and Roy 2018, "Data-dependent PAC-Bayes priors via differential privacy"; Perez-Ortiz et al. 2021
    (arXiv 2007.12911), section 6.1. The gradient is 0 if the probability is clamped.

    Args:
        outputs: [B, classes], before the softmax.
        y: [B], labels.
    """
    losses = F.nll_loss(F.log_softmax(outputs, dim=1).clamp_min(math.log(p_min)), y, reduction="none")
    return losses / math.log(1 / p_min)


def soft_zero_one(outputs: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Return the chance of a wrong label, if labels are sampled from softmax(outputs / temperature): [B] in [0, 1].

    It goes to :func:`zero_one` as the temperature goes to 0, and is differentiable.

    Args:
        outputs: [B, classes], before the softmax.
        y: [B], labels.
    """
    return 1 - torch.softmax(outputs / temperature, dim=1).gather(1, y[:, None]).squeeze(1)


def zero_one(outputs: Tensor, y: Tensor) -> Tensor:
    """Return float64 [B]: 1 if the largest output is not the label's, or if an output is NaN, else 0."""
    return ((outputs.argmax(dim=1) != y) | outputs.isnan().any(dim=1)).double()
