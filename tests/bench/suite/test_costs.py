"""The bytes that a call allocates at its peak."""

from __future__ import annotations

import pytest
import torch

from bench.suite import costs
from stochprune import functional


def test_the_peak_counts_what_our_backend_keeps_between_calls(generator):
    native = pytest.importorskip("stochprune.native")
    weight, logits = torch.randn(2, 64, 64, generator=generator)
    x = torch.randn(4, 64, generator=generator)

    def run():
        return functional.masked_linear(x, weight, logits, seed=0, draw=0, stream=1)

    run()
    assert native.workspace.nbytes > 0
    peaks = [costs.peak_bytes(run, torch.device("cpu")) for _ in range(2)]
    assert peaks[0] == peaks[1] >= weight.nbytes, "the masked weight counts in each"
