"""The rule that picks a route, and its override."""

from __future__ import annotations

import pytest
import torch

from stochprune.kernels import routes


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(routes.OVERRIDE, raising=False)


@pytest.mark.parametrize(
    "tokens, dtype, estimator, route",
    [
        (1, torch.bfloat16, "straight_through", "in_register"),
        (512, torch.float16, "concrete", "in_register"),
        (513, torch.bfloat16, "straight_through_concrete", "bits"),
        (513, torch.bfloat16, "concrete", "prepass"),
        (4096, torch.bfloat16, "straight_through", "prepass"),
        (16, torch.float32, "straight_through", "in_register"),
        (17, torch.float32, "straight_through", "prepass"),
    ],
)
def test_rule(tokens: int, dtype: torch.dtype, estimator: str, route: str) -> None:
    assert routes.choose(tokens, dtype, estimator) == route


def test_tf32_is_served_like_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "precision", lambda dtype: "tf32")
    assert routes.choose(17, torch.float32, "straight_through") == "in_register"


def test_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(routes.OVERRIDE, "bits")
    assert routes.choose(1, torch.bfloat16, "straight_through") == "bits"
    assert routes.choose(1, torch.bfloat16, "expected") == "in_register"  # a soft mask does not fit in bits
    assert "STOCHPRUNE_ROUTE=bits" in routes.table()
    monkeypatch.setenv(routes.OVERRIDE, "fast")
    with pytest.raises(ValueError, match="unknown route 'fast'; known are: in_register, bits, prepass"):
        routes.choose(1, torch.bfloat16, "straight_through")


def test_table_names_every_route() -> None:
    assert all(route in routes.table() for route in routes.ROUTES)
