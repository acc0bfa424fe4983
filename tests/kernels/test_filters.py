"""Filters with the channels last in memory: read and written in place, with the bits of contiguous filters."""

from __future__ import annotations

import pytest
import torch

from stochprune import materialised
from stochprune.kernels import masked_weight, weight_grad
from tests.backends.cases import mask

SHAPES = [(9, 5, 3, 3), (33, 16, 1, 3), (4, 6, 2, 2, 3), (3, 2, 3, 1, 2), (6, 5, 3)]


def last(t: torch.Tensor) -> torch.Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("draws", "first"), [(1, (0, 0)), (3, (5, 71))], ids=str)
def test_bits_and_formats(shape, first, draws, device, generator, monkeypatch):
    monkeypatch.setattr(materialised, "BUDGET", 1)
    w, logits = torch.randn(2, *shape, generator=generator).to(device)
    grad = torch.randn(draws, *shape, generator=generator).to(device)
    at = mask(9, list(range(draws)), 3, "straight_through_concrete", 0.7, row=first[0], col=first[1], device=device)
    masked = masked_weight(last(w), last(logits), mask=at, dtype=torch.float16)
    assert torch.equal(masked, masked_weight(w, logits, mask=at, dtype=torch.float16))
    assert masked[0].stride() == last(w).stride()
    expected = weight_grad(grad.clone(), w, logits, mask=at, needs=(True, True))
    for levels in (last(logits), logits):
        for g in (
            torch.stack([last(one) for one in grad]),
            grad.clone(),
            grad.transpose(0, 1).contiguous().transpose(0, 1),
        ):
            gradients = weight_grad(g, last(w), levels, mask=at, needs=(True, True))
            for got, value in zip(gradients, expected, strict=True):
                assert torch.equal(got, value) and got.stride() == last(w).stride()


def test_nothing_is_copied(device, generator):
    w, logits = torch.randn(2, 8, 4, 3, 3, generator=generator).to(device)
    for view, t in zip(materialised.flattened(last(w), last(logits), filters=True), (w, logits), strict=True):
        assert view.shape == (8, 4, 9) and torch.equal(view, t.flatten(2)) and view.stride() == (36, 1, 4)
