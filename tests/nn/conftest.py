"""The transformers library, where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.nn.vision import available


@pytest.fixture
def transformers(monkeypatch):
    # Run from the repository's root, transformers would take its folder "kernels" for the package of that name.
    root = Path(__file__).parents[2]
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry).resolve() != root])
    available("transformers")
    return pytest.importorskip("transformers")
