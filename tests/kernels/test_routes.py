"""The rule that picks a route, its constants and its override."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stochprune.kernels import routes
from stochprune.kernels.calibrate import calibrate

DEVICE = torch.device("cpu")  # has the roofline's constants
SIZE = (4096, 4096)


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(routes.OVERRIDE, raising=False)


def choose(
    tokens: int,
    dtype: torch.dtype,
    estimator: str = "straight_through",
    draws: int = 1,
    size: tuple[int, int] = SIZE,
    formed: bool = False,
) -> str:
    return routes.choose(routes.Product(draws, tokens, *size, dtype, dtype, dtype, 0, formed), estimator, DEVICE)


@pytest.mark.parametrize(
    "tokens, dtype, estimator, route",
    [
        (1, torch.bfloat16, "straight_through", "in_register"),
        (128, torch.float16, "concrete", "in_register"),
        (1024, torch.bfloat16, "concrete", "prepass"),
        (4096, torch.bfloat16, "straight_through", "prepass"),
        (16, torch.float32, "straight_through", "in_register"),
        (128, torch.float32, "straight_through", "prepass"),
    ],
)
def test_rule(tokens: int, dtype: torch.dtype, estimator: str, route: str) -> None:
    assert choose(tokens, dtype, estimator) == route


@pytest.mark.parametrize("tokens, draws, formed", [(128, 1, True), (512, 1, True), (16, 64, False), (128, 8, False)])
def test_thresholds_pay_if_they_are_cached_or_serve_many_draws(tokens: int, draws: int, formed: bool) -> None:
    assert choose(tokens, torch.bfloat16, "straight_through_concrete", draws, formed=formed) == "thresholds"
    assert choose(tokens, torch.bfloat16, "concrete", draws, formed=formed) != "thresholds"
    assert choose(tokens, torch.bfloat16) != "thresholds"


def test_main_loops_draw_from_whole_groups_of_columns_on(monkeypatch: pytest.MonkeyPatch) -> None:
    product = routes.Product(1, 1, *SIZE, *[torch.bfloat16] * 3)
    routed = [routes.choose(product._replace(col=col), "straight_through", DEVICE) for col in (64, 2**34 - 64, 65)]
    assert routed == ["in_register", "in_register", "prepass"]
    monkeypatch.setenv(routes.OVERRIDE, "thresholds")
    assert routes.choose(product._replace(col=16), "straight_through", DEVICE) == "prepass"


def test_few_weights_are_served_by_one_launch() -> None:
    assert choose(512, torch.bfloat16) == "prepass"
    assert choose(512, torch.bfloat16, size=(256, 256)) == "in_register"


def test_tf32_has_constants_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(96, torch.float32) == "prepass"
    monkeypatch.setattr(routes, "precision", lambda dtype: "tf32")
    assert choose(96, torch.float32) == "in_register"


def test_the_model_is_a_roofline() -> None:
    """At one token a product takes a launch and reading each byte once; at many its operations."""
    gpu, weights = routes.ROOFLINE, SIZE[0] * SIZE[1]
    seconds = routes.Product(1, 1, *SIZE, *[torch.bfloat16] * 3).seconds(DEVICE)
    assert seconds["in_register"] == gpu.launch + 4 * weights / gpu.bandwidth
    many = routes.Product(2, 10**6, *SIZE, *[torch.bfloat16] * 3).seconds(DEVICE)
    assert many["prepass"] == pytest.approx(2 * 2e6 * weights / gpu.matmul[0], rel=1e-2)


def test_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(routes.OVERRIDE, "thresholds")
    assert choose(1, torch.bfloat16) == "thresholds"
    assert choose(1, torch.bfloat16, "expected") == "in_register"  # a soft mask has no threshold
    assert "STOCHPRUNE_ROUTE=thresholds" in routes.table(*SIZE, DEVICE)
    monkeypatch.setenv(routes.OVERRIDE, "fast")
    with pytest.raises(ValueError, match=r"route.*'fast'.*in_register, thresholds, prepass"):
        choose(1, torch.bfloat16)


@pytest.mark.parametrize("draws, marked", [(1, {"1": 0, "16384": 2}), (64, {"1": 1, "128": 1, "16384": 2})])
def test_the_table_marks_what_is_chosen(draws: int, marked: dict[str, int]) -> None:
    lines = {line.split()[0]: line for line in routes.table(*SIZE, DEVICE, draws).splitlines()[2:12]}
    for tokens, route in marked.items():
        assert ["*" in cell for cell in lines[tokens].split()[-3:]] == [i == route for i in range(3)]


def test_measured_constants_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = routes.ROOFLINE._replace(launch=1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    path = routes.calibration_file()
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"a GPU": measured._asdict()}))
    gpu = torch.device("cuda", 0)
    routes.constants.cache_clear()
    assert routes.constants(gpu) == measured
    path.write_text(json.dumps({"another": measured._asdict()}))
    routes.constants.cache_clear()
    assert routes.constants(gpu) == routes.ROOFLINE
    routes.constants.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_calibration_needs_a_gpu() -> None:
    with pytest.raises(RuntimeError, match="GPU"):
        calibrate()
