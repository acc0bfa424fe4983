"""Tile kernels for tests, also where the processor has none, and float32 on them."""

from __future__ import annotations

import pytest
import torch

from stochprune.doctor.self_test import instructions


def _tile_units() -> list[str]:
    try:
        from stochprune import _C
    except ImportError:
        return []
    return [name for name in ("amx", "amx-emulated") if name in (*_C.instruction_sets(), "amx-emulated")]


@pytest.fixture(params=_tile_units())
def tile_unit(request, monkeypatch):
    """Small layers, too, are computed on tiles, in scratch memory that holds NaN: what no kernel writes shows."""
    from stochprune.native import tiles

    monkeypatch.setattr(tiles, "SMALLEST_LAYER", 1)
    memory = tiles._memory
    monkeypatch.setattr(tiles, "_memory", lambda *args: memory(*args).fill_(255))
    with instructions(request.param):
        yield request.param


@pytest.fixture
def any_precision():
    """A test may change torch's precision of products of float32; all its settings are restored."""
    parts = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul, torch.backends
    before = [part.fp32_precision for part in parts]
    yield
    torch.set_float32_matmul_precision("highest")  # the legacy setting, whose getter may fail after a test
    for part, precision in zip(parts, before, strict=True):
        part.fp32_precision = precision


@pytest.fixture
def high_precision(any_precision):
    """Products of float32 may be those of three products of bfloat16."""
    torch.set_float32_matmul_precision("high")
