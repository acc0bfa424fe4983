"""The numbers of all tests of shrinking."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def numbers() -> Iterator[None]:
    """Torch's layers draw their weights from its global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
