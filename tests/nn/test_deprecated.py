"""Names of an earlier version still work, and warn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stochprune as sp


@pytest.mark.parametrize(
    "old, new", [(lambda m: sp.nn.one_launch(m), sp.nn.fused_masking), (lambda m: sp.nn.many_draws(m, 2), None)]
)
def test_each_does_what_its_successor_does(old, new, generator):
    new = new or (lambda m: sp.nn.batched_samples(m, 2))
    x = torch.randn(4, 6, generator=generator)
    results = []
    for entered in (old, new):
        model = nn.Sequential(sp.nn.MaskedLinear(6, 5, keep=0.6))
        if entered is old:
            with pytest.warns(DeprecationWarning, match="is now called (fused_masking|batched_samples)"):
                context = entered(model)
        else:
            context = entered(model)
        with context:
            results.append(model(x))
    assert torch.equal(*results)
