"""The figures of masks in a report, small enough to store beside results: histograms, and a part of the first mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

BINS = 20
MOST_UNITS = 24
"""Outputs of the first layer whose masks are stored."""
MOST_INPUTS = 4096


def snapshot(logits: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return histograms of keep probabilities, and which weights the first layer keeps, for JSON.

    Args:
        logits: of keep probabilities, by weight name, each [N, ...].
        kept: the masks, bool tensors of the same shapes.

    Returns:
        ``keep``: by name, the number of weights in each of :data:`BINS` equal intervals of [0, 1]. ``first``: ``name``
        and ``shape`` of the first weight, ``share``, the fraction of outputs that keep each input, and ``units``, the
        masks of the first outputs, packed bits in hexadecimal; None if an output has more than :data:`MOST_INPUTS`.
    """
    keep = {name: _histogram(values) for name, values in logits.items()}
    name = next(iter(kept), None)
    if name is None or (mask := kept[name].cpu()).dim() < 2 or mask[0].numel() > MOST_INPUTS:
        return {"keep": keep, "first": None}
    flat = mask.flatten(1)
    share = [round(value, 4) for value in flat.double().mean(0).tolist()]
    units = [np.packbits(unit).tobytes().hex() for unit in flat[:MOST_UNITS].numpy()]
    return {"keep": keep, "first": {"name": name, "shape": list(mask.shape), "share": share, "units": units}}


def _histogram(logits: Tensor) -> list[int]:
    probabilities = torch.sigmoid(logits.detach().float().flatten())
    bins = (probabilities * BINS).long().clamp_(0, BINS - 1)
    return [int(count) for count in torch.bincount(bins, minlength=BINS)]
