"""The benchmark of AMX, on emulated tiles."""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("stochprune._C")

from bench import amx
from stochprune import _C, native
from stochprune.doctor.self_test import instructions
from stochprune.native import tiles


def test_every_part_is_measured_and_nothing_stays_changed():
    settings = lambda: (_C.instruction_set(), tiles.LARGEST_BATCH, tiles.SMALLEST_LAYER, tiles.reduced())  # noqa: E731
    before = settings()
    results = amx.measure([(8, 16)], [2], 1, "amx-emulated", "scalar")
    assert [(r.dtype, r.part) for r in results] == list(itertools.product(amx.DTYPES, amx.PARTS))
    assert all(r.dense > 0 and r.tiles > 0 and r.copy > 0 and r.high > 0 for r in results)
    assert {r.high for r in results if r.dtype is torch.bfloat16} == {1.0}
    assert settings() == before
    assert not native.cache.enabled and native.cache.nbytes == 0


def test_the_limits_are_where_the_copy_begins_to_win():
    step = amx.PARTS[2]
    shapes, batches = [(8, 8), (16, 16), (32, 32)], [1, 2, 4, 8]
    wins = lambda shape, batch: batch <= 4 and shape[0] > 8  # noqa: E731
    copy = lambda shape, batch: 2.0 if wins(shape, batch) else 0.5  # noqa: E731
    results = [amx.Result(torch.bfloat16, s, b, step, 1.0, 1.0, copy(s, b), 1.0) for s in shapes for b in batches]
    assert amx.limits(results) == (4, 256)
    assert amx.limits([r._replace(copy=0.5) for r in results]) == (0, 0)


def test_float32_on_tiles_runs_in_parts(monkeypatch):
    taken = []
    monkeypatch.setattr(tiles, "forward", lambda layer, x, bias: taken.append((x.dtype, tiles.reduced())))
    monkeypatch.setattr(tiles, "SMALLEST_LAYER", 1)
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    try:
        with instructions("scalar"):
            for run in amx.calls(torch.float32, (8, 16), 2, amx.PARTS[1], "amx-emulated", "scalar").values():
                run()
    finally:
        matmul.fp32_precision = before
    assert taken == [(torch.float32, True)]


def test_the_batch_from_which_float32_pays():
    part = amx.PARTS[0]
    at = lambda batch, tiled, high=1.0: amx.Result(torch.float32, (4, 4), batch, part, 1.0, tiled, 2.0, high)  # noqa: E731
    results = [at(16, 1.2), at(64, 0.9), at(128, 0.8), at(2048, 3.0)]
    assert amx.faster_from(results, part) == 64
    assert amx.faster_from([*results, at(64, 0.9, high=0.8)], part) == 128
    assert amx.faster_from([*results, at(1024, 1.0)], part) == 0
    assert amx.faster_from(results, amx.PARTS[1]) == 0
