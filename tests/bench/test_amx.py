"""The benchmark of AMX, on emulated tiles."""

from __future__ import annotations

import pytest

pytest.importorskip("stochprune._C")

from bench import amx
from stochprune import _C, native
from stochprune.native import tiles


def test_every_part_is_measured_and_nothing_stays_changed():
    before = _C.instruction_set(), tiles.LARGEST_BATCH, tiles.SMALLEST_LAYER
    results = amx.measure([(8, 16)], [2], 1, "amx-emulated", "scalar")
    assert [r.part for r in results] == list(amx.PARTS)
    assert all(r.dense > 0 and r.tiles > 0 and r.copy > 0 for r in results)
    assert (_C.instruction_set(), tiles.LARGEST_BATCH, tiles.SMALLEST_LAYER) == before
    assert not native.cache.enabled and native.cache.nbytes == 0


def test_the_limits_are_where_the_copy_begins_to_win():
    step = amx.PARTS[2]
    shapes, batches = [(8, 8), (16, 16), (32, 32)], [1, 2, 4, 8]
    wins = lambda shape, batch: batch <= 4 and shape[0] > 8  # noqa: E731
    results = [amx.Result(s, b, step, 1.0, 1.0, 2.0 if wins(s, b) else 0.5) for s in shapes for b in batches]
    assert amx.limits(results) == (4, 256)
    assert amx.limits([r._replace(copy=0.5) for r in results]) == (0, 0)
