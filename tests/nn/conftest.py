"""The transformers library, where it is installed."""

from __future__ import annotations

import pytest

from tests.nn.vision import available


@pytest.fixture
def transformers():
    available("transformers")
    return pytest.importorskip("transformers")
