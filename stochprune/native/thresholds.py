"""Thresholds of logits in C++, exact, and their optional cache."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.address import Logits
from stochprune.threshold_cache import ThresholdCache


def threshold_from_logits(logits: Logits) -> Tensor:
    """As :func:`stochprune.reference.threshold_from_logits`."""
    out = torch.empty(logits.shape, dtype=torch.uint16)
    _C.thresholds(logits, out, torch.get_num_threads())
    return out


cache = ThresholdCache(threshold_from_logits)
