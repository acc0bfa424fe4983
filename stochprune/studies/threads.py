"""The number of threads for small networks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stochprune.nn.evaluation import evaluation

SMALL = 100e6
"""Floating-point operations of a forward pass, below which a second thread costs more than it computes."""


@contextlib.contextmanager
def few_threads(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Let torch use one thread inside the block if the network is small; afterwards it uses as many as before.

    Threads wait for each other in each operation. In small operations this takes longer than the work itself, and much
    longer if other programs use the cores. The environment variable OMP_NUM_THREADS has priority.

    Args:
        model: a network in plain PyTorch. Its state does not change.
        x: one batch of its inputs.
    """
    before = torch.get_num_threads()
    if x.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and _flops(model, x) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _flops(model: nn.Module, x: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), evaluation(model), counter:
        model(x)
    return counter.get_total_flops()
