"""The bytes that a forward pass saves for backward."""

from __future__ import annotations

import gc
import weakref

import torch

from stochprune.training.activations import saved_bytes


def test_saved_bytes_count_each_storage_once_and_not_those_of_the_caller(generator):
    x = torch.randn(32, 32, generator=generator, requires_grad=True)
    assert saved_bytes(lambda: (x * x).sum(), [x]) == 0
    assert saved_bytes(lambda: torch.sigmoid(x).square().sum(), [x]) == x.nbytes, "one result, saved by two"


def test_saved_bytes_hold_no_tensor_afterwards(generator):
    """A result that its own operation saves must not keep the graph, and the parameters, for ever."""

    def counted():
        x = torch.randn(32, 32, generator=generator, requires_grad=True)
        assert saved_bytes(lambda: torch.sigmoid(x).sum(), [x]) == x.nbytes
        return weakref.ref(x)

    found = counted()
    gc.collect()
    assert found() is None
