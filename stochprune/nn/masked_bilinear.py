"""MaskedBilinear: nn.Bilinear under a stochastic mask."""

from __future__ import annotations

from torch import nn

from stochprune.nn.masked_module import MaskedModule


class MaskedBilinear(MaskedModule, nn.Bilinear):
    """``nn.Bilinear`` under a masked ``weight`` [out_features, in1_features, in2_features].

    The row of the mask is the output feature.

    Shape:
        as in torch's module.
    """

    dense_type = nn.Bilinear
    weights = ("weight",)
