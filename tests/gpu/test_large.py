"""Weights of more than 2^31 elements: the last rows are as right as the first."""

from __future__ import annotations

import pytest
import torch

from stochprune import reference
from stochprune.address import Mask
from stochprune.kernels import keep_mask, masked_linear, threshold_from_logits
from stochprune.kernels.routes import OVERRIDE, ROUTES
from tests.backends.cases import moved

ROWS, COLS = 2**17 + 40, 2**14 + 8  # 2.15e9
NEEDED = 24 << 30  # bytes
AT = Mask(torch.tensor([1]), torch.tensor([2]), 3)


@pytest.fixture(autouse=True)
def enough_memory(device: torch.device) -> None:
    if torch.cuda.mem_get_info(device)[0] < NEEDED:
        pytest.skip(f"needs {NEEDED >> 30} GiB of GPU memory")


def test_keep_mask(device: torch.device) -> None:
    threshold = torch.full((ROWS, COLS), 16384, dtype=torch.uint16, device=device)
    keep = keep_mask(threshold, mask=moved(AT, device))
    for start in (0, ROWS // 2, ROWS - 8):
        expected = reference.keep_mask(threshold[start : start + 8].cpu(), mask=AT._replace(row=start))
        assert torch.equal(keep[start : start + 8].cpu(), expected)


@pytest.mark.parametrize("route", ROUTES)
def test_masked_linear(route: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, route)
    weight = torch.ones(ROWS, COLS, dtype=torch.bfloat16, device=device)
    logits = torch.zeros(ROWS, COLS, dtype=torch.bfloat16, device=device)
    x = torch.zeros(1, 16, COLS, dtype=torch.bfloat16, device=device)
    chosen = torch.arange(16) * (COLS // 16) + 7
    x[0, torch.arange(16), chosen] = 1
    y = masked_linear(x, weight, logits, None, mask=moved(AT, device))[
        0
    ].mT  # [ROWS, 16]: the mask at the chosen columns
    for start in (0, ROWS // 2, ROWS - 8):
        threshold = threshold_from_logits(logits[start : start + 8]).cpu()
        expected = reference.keep_mask(threshold, mask=AT._replace(row=start))[:, chosen]
        assert torch.equal(y[start : start + 8].cpu() != 0, expected)
