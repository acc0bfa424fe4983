"""The GPU check's own code, with small sizes on the CPU and made-up times: a lease of a GPU is dear."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import baselines, draws, gpu_check
from stochprune import kernels
from stochprune.kernels.routes import ROOFLINE, ROUTES


def once(run: Callable[[], object]) -> float:
    run()
    return 2.0


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_check, "SQUARE", [(24, 40)])
    monkeypatch.setattr(gpu_check, "MLP", [])
    monkeypatch.setattr(gpu_check, "TOKENS", [1, 3])
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_check, "median_us", once)
    monkeypatch.setattr(gpu_check, "ceilings", lambda: {"copy_tb_per_s": 4.0, "matmul_tflop_per_s": 700.0})
    monkeypatch.setattr(gpu_check, "MASKED", ["eager", "compile"])
    monkeypatch.setitem(baselines.CONTENDERS, "compile", baselines.eager)
    # baselines draw from the global generator, which is theirs; here it is to stay as it is
    monkeypatch.setattr(torch, "rand_like", torch.ones_like)
    monkeypatch.setattr(kernels, "calibrate", lambda: ROOFLINE)
    monkeypatch.setattr(draws, "CASES", (("lenet_300_100", "masks", 2),))
    monkeypatch.setattr(gpu_check, "ways", lambda: {route: ("STOCHPRUNE_ROUTE", route) for route in ROUTES})
    return tmp_path


def test_benchmark(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = gpu_check.benchmark(time.monotonic() + 60)
    assert [(case["m"], case["n"], case["k"]) for case in found["cases"]] == [(1, 24, 40), (3, 24, 40)]
    assert set(found["cases"][0]["ours"]) == {"chosen", *ROUTES} and found["left_out"] == []
    assert [row["network"] for row in found["draws"]] == ["lenet_300_100"]
    assert found["cases"][0]["share_of_copy"] == pytest.approx(4 * 24 * 40 / 2 / 1e6 / 4)
    assert "1.00 dense" in capsys.readouterr().out


def test_what_does_not_fit_is_left_out(small: Path) -> None:
    found = gpu_check.benchmark(time.monotonic() - 1)
    assert found["cases"] == [] and found["left_out"] == [[1, 24, 40], [3, 24, 40]]


@pytest.mark.parametrize(("status", "sanitizer", "exit_status"), [(0, "clean", 0), (1, "clean", 1), (0, "status 9", 1)])
def test_a_row_is_written_whatever_the_tests_say(
    small: Path, monkeypatch: pytest.MonkeyPatch, status: int, sanitizer: str, exit_status: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    run = gpu_check.subprocess.run

    class Ended:
        returncode = status

    monkeypatch.setattr(gpu_check.subprocess, "run", lambda c, **k: Ended() if "pytest" in c else run(c, **k))
    monkeypatch.setattr(gpu_check, "sanitize", lambda: sanitizer)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--minutes", "1"])
    assert gpu_check.main() == exit_status
    (path,) = small.iterdir()
    row = json.loads(path.read_text())
    assert path.name.startswith("gpu-A-GPU-") and len(row["cases"]) == 2
    assert row["tests"] == ("failed" if status else "passed") and row["sanitizer"] == sanitizer


def test_exercise_runs_every_way(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    gpu_check.exercise()


def test_the_sanitizer_may_be_missing_or_find_faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_check.sanitize() == "not there"
    tool = tmp_path / "compute-sanitizer"
    for text, verdict in (("exit 0", "clean"), ("echo fault; exit 9", "status 9: fault")):
        tool.write_text(f"#!/bin/sh\n{text}\n")
        tool.chmod(0o755)
        assert gpu_check.sanitize() == verdict


def test_calibration_measures_every_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("stochprune.kernels.calibrate")  # not the function of the same name
    monkeypatch.setattr(module, "SIZE", 64)
    monkeypatch.setattr(module, "COPY", 1 << 10)
    monkeypatch.setattr(module, "_seconds", once)
    before = torch.backends.cuda.matmul.fp32_precision
    found = module.measure(torch.device("cpu"))
    assert torch.backends.cuda.matmul.fp32_precision == before
    assert found.bandwidth == 1 << 10 and found.launch == 0.1
    assert found.matmul == (64.0**3,) * 3
    assert all(len(loop) == 3 and min(loop) > 0 for loop in (found.drawing, found.reading))
