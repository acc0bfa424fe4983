from __future__ import annotations

import pytest
import torch

import stochprune as sp

AT = {"seed": 1, "draw": 2, "stream": 3}


def test_a_shard_is_a_slice_of_the_whole():
    threshold = torch.full((40, 300), 16384, dtype=torch.int32).to(torch.uint16)
    whole = sp.keep_mask(threshold, **AT)
    part = sp.keep_mask(threshold[7:20, 33:200], **AT, row_offset=7, col_offset=33)
    assert torch.equal(part, whole[7:20, 33:200])
    assert 0.47 < whole.double().mean() < 0.53


def test_the_mask_of_the_op():
    logits = torch.linspace(-3, 3, 120).view(4, 30)
    weight = torch.arange(1.0, 121).view(4, 30)
    keep = sp.keep_mask(sp.rng.threshold_from_logits(logits), **AT)
    masked = sp.functional.masked_linear(torch.eye(30), weight, logits, **AT).T
    assert torch.equal(masked, torch.where(keep, weight, 0.0))


@pytest.mark.parametrize(
    "threshold, change, error, message",
    [
        (torch.ones(2, 2), {}, TypeError, "threshold.*got torch.float32"),
        (torch.ones(2, dtype=torch.int32), {}, ValueError, "threshold.*matrix"),
        (torch.full((1, 1), 32769), {}, ValueError, r"got 32769"),
        (torch.full((1, 1), -1), {}, ValueError, r"got -1"),
        (torch.full((1, 1), 2**32 + 5), {}, ValueError, r"got 4294967301"),
        (torch.ones(2, 2, dtype=torch.int32), {"row_offset": 2**32 - 1}, ValueError, "row_offset"),
        (torch.ones(2, 2, dtype=torch.int32), {"draw": torch.arange(2)}, ValueError, "draw.*got 2"),
    ],
)
def test_bad_input(threshold, change, error, message):
    with pytest.raises(error, match=message):
        sp.keep_mask(threshold, **{**AT, **change})
