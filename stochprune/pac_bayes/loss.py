"""Losses in [0, 1]."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def bounded_cross_entropy(outputs: Tensor, y: Tensor, p_min: float) -> Tensor:
    """Cross-entropy with probabilities of at least ``p_min``, over ln(1 / p_min): [B] in [0, 1].

    Dziugaite and Roy 2018, "Data-dependent PAC-Bayes priors via differential privacy"; Perez-Ortiz et al. 2021
    (arXiv 2007.12911), section 6.1. Where the probability is clamped the gradient is 0.

    Args:
        outputs: [B, classes], before the softmax.
        y: [B], labels.
    """
    losses = F.nll_loss(F.log_softmax(outputs, dim=1).clamp_min(math.log(p_min)), y, reduction="none")
    return losses / math.log(1 / p_min)


def zero_one(outputs: Tensor, y: Tensor) -> Tensor:
    """1 where the largest output is not the label's, or where one is NaN: float64 [B]."""
    return ((outputs.argmax(dim=1) != y) | outputs.isnan().any(dim=1)).double()
