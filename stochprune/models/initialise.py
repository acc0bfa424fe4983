"""Initialisation from a local generator."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
@torch.no_grad()
def kaiming_normal_(weight: Tensor, generator: np.random.Generator) -> Tensor:
    """Fill a weight [out, in, ...] in place from N(0, 2 / fan_in), fan_in being the product of all but the first size.

    He, Zhang, Ren and Sun 2015, "Delving deep into rectifiers", equation 10: the variance that keeps signals through
    ReLU layers. It is the default of ``open_lth`` (Frankle), from which much of the pruning literature starts.
    """
    std = math.sqrt(2 / max(1, math.prod(weight.shape[1:])))
    return weight.copy_(torch.from_numpy(generator.standard_normal(tuple(weight.shape), np.float32)).mul_(std))
