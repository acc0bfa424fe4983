"""The package as a backend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

from stochprune import kernels

ROOT = Path(__file__).parents[2]


def test_refuses_its_bare_name() -> None:
    run = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode
    assert "ImportError: this folder is the package stochprune.kernels" in run.stderr


@pytest.mark.parametrize("interpreted, on_gpu", [(True, False), (False, True), (False, False)])
def test_takes_what_runs_here_but_float64(interpreted: bool, on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", interpreted)
    monkeypatch.setattr(torch.Tensor, "is_cuda", on_gpu, raising=False)
    half, double = torch.zeros(1, dtype=torch.float16), torch.zeros(1, dtype=torch.float64)
    assert kernels.supports(half, torch.zeros(1)) == (interpreted or on_gpu)
    assert not kernels.supports(half, double)


def test_describes_itself() -> None:
    assert kernels.NAME == "triton" and kernels.describe().startswith("Triton 3.")
