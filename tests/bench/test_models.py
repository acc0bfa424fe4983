"""The benchmark of whole networks runs, and what it counts is there for each contender."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import models


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


def test_a_network_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "NETWORKS", {"small": (small, 4)})
    with torch.random.fork_rng(devices=[]):  # torch's layers and the eager masks draw from it
        row = models.measure("small", 1)
    assert row["batch"] == 4 and set(row["ms"]) == set(row["tax"]) == set(models.CONTENDERS)
    assert row["tax"]["dense"] == 1 and all(time > 0 for time in row["ms"].values())
    assert row[models.SAVED]["dense"] == 0 and row[models.SAVED]["eager"] > row[models.SAVED]["joint"]
    assert models.saved(row, "one launch") == "" and models.saved(row, "dense") == "0.00"
