"""The benchmark of shrunk models runs, and its masks prune half of the filters in the same places."""

from __future__ import annotations

import pytest
import torch

from stochprune.models import resnet20, vit

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from bench import shrink


def test_a_network_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(shrink, "NETWORKS", {"small": lambda: resnet20(width=2, seed=0)})
    monkeypatch.setattr(shrink, "BATCHES", (2,))
    row = shrink.measure("small", 1)
    torch.set_num_threads(threads)
    assert row["parameters"][1] < row["parameters"][0] and row["macs"][1] < row["macs"][0]
    assert len(row["cases"]) == 4 and all(case["gain"] > 0 and min(case["ms"]) > 0 for case in row["cases"])
    assert "| small | ONNX Runtime | 2 | 2 |" in shrink.tables([row])


def test_masks_prune_half_of_the_filters_and_one_head() -> None:
    masks = shrink.masks_of(resnet20(width=4, seed=0))
    assert all(mask.flatten(1).all(1).sum() == len(mask) // 2 for mask in masks.values())
    assert torch.equal(masks["conv1.weight"][:, 0], masks["layer1.0.conv2.weight"][:, 0])
    attention = shrink.masks_of(vit(width=12, depth=1, seed=0))["blocks.0.attention.qkv.weight"]
    assert attention.shape == (36, 12) and not attention[4:8].any() and attention[:4].all()
