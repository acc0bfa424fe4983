"""Evaluation mode for a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Set every module to evaluation mode inside the block, and restore each module's mode after it."""
    with same_modes(model):
        model.eval()
        yield


@contextlib.contextmanager
def same_modes(model: nn.Module) -> Iterator[None]:
    """Restore each module's mode, training or evaluation, after the block."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
