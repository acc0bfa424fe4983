"""The benchmark of a certificate's draws runs, and measures both ways on the same networks."""

from __future__ import annotations

import pytest

from bench import draws


def test_every_case_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "CASES", (("lenet_300_100", "masks", 4), ("lenet_300_100", "gaussian", 4)))
    masks, gaussian = draws.rows(1, "cpu")
    assert (masks["network"], gaussian["posterior"]) == ("lenet_300_100", "gaussian")
    for row in (masks, gaussian):
        assert set(row) == {"network", "posterior", "examples", "alone", "together", "minutes"}
        assert row["minutes"] == pytest.approx(150_000 * row["together"] / 60e6) and row["alone"] > 0
