"""The benchmark of estimators finds the unbiased ones unbiased; its exact gradient is that of finite differences."""

from __future__ import annotations

import itertools

import pytest
import torch

from bench.estimators import bias, steps


def test_the_exact_gradient() -> None:
    p = bias.problem("test", (3, 1), True)

    def expected(logits: torch.Tensor) -> float:
        q, total = torch.sigmoid(logits.double()).flatten(), 0.0
        for kept in itertools.product((0.0, 1.0), repeat=3):
            mask = torch.tensor(kept, dtype=torch.float64)
            y = p.x.double() @ (mask * p.weights[0].detach().double()).mT
            total += float(torch.where(mask > 0, q, 1 - q).prod() * (y - p.target.double()).square().mean())
        return total

    logits, step = p.logits[0].detach().double(), 1e-5
    found = bias.exact(p)[0].flatten()
    for i, move in enumerate(step * torch.eye(3, dtype=torch.float64)):
        slope = (expected(logits + move) - expected(logits - move)) / (2 * step)
        assert found[i].item() == pytest.approx(slope, rel=1e-6)


def test_unbiased_estimators(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {name: bias.ESTIMATORS[name] for name in ("straight_through", "local reparameterisation", "DisARM")}
    monkeypatch.setattr(bias, "PROBLEMS", [("test", (4, 1), True, chosen)])
    through, local, disarm = (row["logits"] for row in bias.measure(2000))
    for row in (local, disarm):
        assert row["bias"] < 4 * row["noise"] and row["cosine"] > 0.9
    assert through["bias"] > 4 * through["noise"]


def test_every_estimator_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WIDTH", 64), ("BATCH", 4), ("ROUNDS", 1)):
        monkeypatch.setattr(steps, name, value)
    times = steps.measure()
    assert {"dense", "DisARM", "N:M 2:4, straight-through"} <= set(times) and min(times.values()) > 0
