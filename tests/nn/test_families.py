"""Model families of torchvision and timm: those that train do all of it, the others are refused by name."""

from __future__ import annotations

import pytest

from tests.nn import families
from tests.nn.families import EVERYDAY, FAMILIES, REFUSED, Family
from tests.nn.vision import available


@pytest.fixture(scope="module", autouse=True)
def packages():
    for package in ("torchvision", "timm"):
        if not available(package):
            pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f.name in EVERYDAY else pytest.mark.slow) for f in FAMILIES],
    ids=lambda family: family.name,
)
def test_a_family_converts_trains_and_hardens(family: Family):
    row = families.run(family)
    if family.name in REFUSED:
        assert not row.layers and "stochprune.nn.register" in row.reason, row
        return
    assert row.trains and row.hardens and not row.reason, row
    assert row.layers > 0 and 0.2 < row.masked <= 1
    assert bool(row.refused) == (bool(family.way))
