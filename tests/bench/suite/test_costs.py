"""The counts of bytes: what a forward pass saves, and what a call allocates at its peak."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from bench.suite import costs
from stochprune import functional


def test_saved_bytes_count_each_storage_once_and_not_those_of_the_caller(generator):
    x = torch.randn(32, 32, generator=generator, requires_grad=True)
    assert costs.saved_bytes(lambda: (x * x).sum(), [x]) == 0
    assert costs.saved_bytes(lambda: torch.sigmoid(x).square().sum(), [x]) == x.nbytes, "one result, saved by two"


def test_saved_bytes_hold_no_tensor_afterwards(generator):
    """A result that its own operation saves must not keep the graph, and the parameters, for ever."""

    def counted():
        x = torch.randn(32, 32, generator=generator, requires_grad=True)
        assert costs.saved_bytes(lambda: torch.sigmoid(x).sum(), [x]) == x.nbytes
        return weakref.ref(x)

    found = counted()
    gc.collect()
    assert found() is None


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
