"""The benchmark of single layers runs, and measures every contender of both tables."""

from __future__ import annotations

import pytest
import torch

from bench import layers


def test_every_case_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "LINEAR", [(64, 8)])
    monkeypatch.setattr(layers, "CONVOLUTIONS", [(2, 3, 4, 5)])
    monkeypatch.setattr(layers, "ROUND_WORK", 1.0)
    before = torch.get_num_threads()
    try:
        linear, draws = layers.rows(2, 1)
    finally:
        torch.set_num_threads(before)
    assert [(row["width"], row["batch"], row["threads"]) for row in linear] == [(64, 8, 1), (64, 8, 2)]
    for row in linear:
        assert row["dense"] == 1 and min(row["joint"], row["mask-only"], row["dense, us"]) > 0
    (row,) = draws
    assert (row["examples"], row["channels"], row["outputs"], row["size"]) == (2, 3, 4, 5)
    assert min(row[f"{part} alone, us"] for part in ("forward", "step")) > 0
    assert min(row[f"{part}, together"] for part in ("forward", "step")) > 0
