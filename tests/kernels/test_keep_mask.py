"""keep_mask in Triton: bits equal to the contract's, wherever the block lies and however it is laid out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stochprune import reference, rng
from stochprune.kernels import keep_mask
from tests.backends.cases import mask, moved

VECTORS = json.loads((Path(__file__).parents[1] / "mask_vectors.json").read_text())
BLOCKS = [
    (1, 1, 0, 0),
    (5, 37, 0, 0),
    (33, 130, 7, 5),
    (40, 200, 2**32 - 40, 2**34 - 200),
    (3, 1, 0, 2**31 + 17),
    (65, 257, 3, 64 * 1000),
    (0, 5, 0, 0),
    (5, 0, 0, 0),
]


def thresholds(rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randint(0, rng.LEVELS + 1, (rows, cols), generator=generator, dtype=torch.int32)
    drawn.view(-1)[::7] = 0
    drawn.view(-1)[3::7] = rng.LEVELS
    return drawn.to(torch.uint16)


@pytest.mark.parametrize("rows, cols, row_offset, col_offset", BLOCKS)
@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
def test_bits(
    rows: int,
    cols: int,
    row_offset: int,
    col_offset: int,
    layout: str,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    threshold = thresholds(rows, cols, generator)
    shape, view = {
        "rows": ((rows, cols), lambda t: t),
        "columns": ((cols, rows), lambda t: t.mT),
        "strided": ((2 * rows, 3 * cols), lambda t: t[::2, ::3]),
    }[layout]
    laid = view(torch.zeros(shape, dtype=torch.uint16, device=device))
    laid.copy_(threshold)
    at = mask(2**64 - 5, 2**32 - 1, 2**31 - 1, row=row_offset, col=col_offset)
    keep = keep_mask(laid, mask=moved(at, device))
    assert keep.dtype == torch.bool and keep.is_contiguous()
    assert torch.equal(keep.cpu(), reference.keep_mask(threshold, mask=at))


@pytest.mark.parametrize("case", VECTORS["uniform16"], ids=lambda case: f"seed{case['seed']}-draw{case['draw']}")
def test_golden_vectors(case: dict, device: torch.device) -> None:
    u = torch.tensor(case["values"]) & 0x7FFF
    offsets = {"row": case["row_offset"], "col": case["col_offset"]}
    at = moved(mask(case["seed"], case["draw"], case["stream"], **offsets), device)
    for shift, kept in ((0, False), (1, True)):  # a threshold equal to the uniform drops, one above it keeps
        threshold = (u + shift).to(torch.int32).to(torch.uint16).to(device)
        assert bool((keep_mask(threshold, mask=at) == kept).all())
