"""More draws than an axis of a grid holds: the blocks lie along x alone, in the order that the emulation runs too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stochprune import backends, reference
from tests.backends.cases import mask
from tests.cuda.emulation import emulation

SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"
DRAWS = 70_000


def test_no_launch_uses_another_axis() -> None:
    assert not [path.name for path in SOURCES.iterdir() if "blockIdx.y" in path.read_text()]


def test_the_last_draw_has_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stochprune._C.cuda", emulation(), raising=False)
    weight, logits, at = torch.ones(2, 40), torch.zeros(2, 40), mask(5, list(range(DRAWS)), 3)
    masked = backends.load("cuda").masked_weight(weight, logits, mask=at, dtype=torch.float32)
    for d in (0, 65_535, 65_536, DRAWS - 1):
        keep = reference.keep_mask(reference.threshold_from_logits(logits), mask=at.one(d))
        assert torch.equal(masked[d] != 0, keep)
